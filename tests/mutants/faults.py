"""Faults that would flatter a defense, or lie about a figure. Nearly all of them once survived every test."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One line of the tree, broken.

    Attributes:
        name: what is broken, in words.
        file: that it is in.
        before: a piece of it that is there once.
        after: what stands in its place.
        tests: that must fail then.
    """

    name: str
    file: str
    before: str
    after: str
    tests: str


ADAPTIVE = "fastdef/evaluation/adaptive"
ROWS = "tests/evaluation/adaptive/test_rows.py"
RESULTS = "tests/evaluation/adaptive/test_results.py"
SCHEDULER = "tests/runtime/test_scheduler.py"
EVALUATE = "tests/evaluation/test_evaluate.py"
AFA = "tests/evaluation/test_afa.py"

FAULTS = [
    Fault(
        "transfer hands back the clean image",
        f"{ADAPTIVE}/rows/transfer.py",
        "[attacks[self.attack](self.model, batch.images, batch.labels, eps=eps)]",
        "[batch.images]",
        ROWS,
    ),
    Fault(
        "RayS hands back the clean image",
        f"{ADAPTIVE}/rows/blackbox.py",
        "return [rays(wrong, batch.images, eps=self.plan.eps, queries=self.decisions)]",
        "return [batch.images]",
        ROWS,
    ),
    Fault(
        "the smoothed unroll hands back the clean image",
        f"{ADAPTIVE}/rows/unrolled.py",
        "return [self.plan.search([ask], batch, iterations=self.iterations)]",
        "return [batch.images]",
        ROWS,
    ),
    Fault(
        "the margin row runs cross-entropy",
        f"{ADAPTIVE}/rows/bpda.py",
        "_LOSSES[self.loss]",
        "cross_entropy",
        ROWS,
    ),
    Fault(
        "the paper's adaptive attack drops lambda * L_F",
        f"{ADAPTIVE}/rows/papers.py",
        " + self.weight * bound",
        "",
        ROWS,
    ),
    Fault("the attack on W0 forgets W0", f"{ADAPTIVE}/rows/papers.py", "ratio=self.ratio,", "ratio=1e9,", ROWS),
    Fault(
        "the attacks on the loop have no gradient of L_F",
        f"{ADAPTIVE}/rows/papers.py",
        "self.ce * main.gradient + self.smooth * extra.gradient",
        "self.ce * main.gradient",
        ROWS,
    ),
    Fault(
        "the check against noise always passes",
        f"{ADAPTIVE}/results.py",
        "headline.score.judgement <= line.score.mean",
        "True",
        RESULTS,
    ),
    Fault(
        "the check of the rising loss always passes",
        f"{ADAPTIVE}/results.py",
        "after >= before * (1 - _SLACK) for",
        "True for",
        RESULTS,
    ),
    Fault(
        "planted examples that do not hold are judged",
        f"{ADAPTIVE}/rows/planted.py",
        "holds = ~most(above(batch.images)) & most(above(readout.planted))",
        "holds = torch.ones(len(points), dtype=torch.bool)",
        RESULTS,
    ),
    Fault(
        "the headline is judged by the noise that chose it",
        f"{ADAPTIVE}/score.py",
        "judgement=float(each[half:].mean())",
        "judgement=float(each[: half or 1].mean())",
        "tests/evaluation/adaptive/test_score.py",
    ),
    Fault(
        "slots that shrank never grow again",
        "fastdef/runtime/scheduler.py",
        "slots is not None and slots.size == size",
        "slots is not None and (slots.size == size or 16 in self._acquired and slots.size < size)",
        SCHEDULER,
    ),
    Fault(
        "any deadline in the queue has passed",
        "fastdef/runtime/scheduler.py",
        "for _, _, start in self._waiting if start.deadline is not None and start.deadline < now",
        "for _, _, start in self._waiting if start.deadline is not None",
        SCHEDULER,
    ),
    Fault(
        "any deadline in a slot has passed",
        "fastdef/runtime/scheduler.py",
        "in self._inside.items() if start.deadline is not None and start.deadline < now",
        "in self._inside.items() if start.deadline is not None",
        SCHEDULER,
    ),
    Fault(
        "the server ignores a request's deadline",
        "fastdef/serving/worker.py",
        "min(self._longest, deadline or self._longest)",
        "self._longest",
        "tests/serving/test_worker.py::test_a_deadline_counts_from_when_the_image_came",
    ),
    Fault(
        "the server's page shows its data to everybody",
        "fastdef/serving/page/routes.py",
        'if not secrets.compare_digest(given, f"Bearer {token}".encode()):',
        "if False:",
        "tests/serving/test_page.py -k token",
    ),
    Fault(
        "as many attacks at a time as are asked for",
        "fastdef/serving/page/attacks.py",
        "if not self._busy.acquire(blocking=False):",
        "if self._busy.acquire(blocking=False) is None:",
        "tests/serving/test_page.py -k one_attack",
    ),
    Fault(
        "Polyak has no longest step",
        "fastdef/runtime/solvers.py",
        "length.clamp_max(self.most / features).view",
        "length.view",
        "tests/runtime/test_solvers.py",
    ),
    Fault(
        "Polyak aims at another target",
        "fastdef/runtime/solvers.py",
        "(1 - self.margin) * delta",
        "(1 - 2 * self.margin) * delta",
        "tests/runtime/test_solvers.py",
    ),
    Fault(
        "MI-FGSM has no momentum",
        "fastdef/attacks/_pgd.py",
        "momentum = decay * momentum + gradient / size",
        "momentum = gradient / size",
        "tests/attacks/test_momentum.py",
    ),
    Fault(
        "no image stands all seven", "fastdef/evaluation/afa.py", "stood &= right", "stood &= ~stood", f"{AFA} -k seven"
    ),
    Fault(
        "the converged are counted as unconverged",
        "fastdef/evaluation/evaluate.py",
        "(~defended.converged)",
        "defended.converged",
        f"{EVALUATE} -k unconverged",
    ),
    Fault(
        "seconds an image are those of the batch",
        "fastdef/evaluation/evaluate.py",
        "seconds=seconds / count",
        "seconds=seconds",
        f"{EVALUATE} -k seconds",
    ),
    Fault(
        "the figure of strengths is empty",
        "fastdef/evaluation/figure.py",
        "    _accuracies(accuracy, models)\n",
        "",
        f"{AFA} -k picture",
    ),
    Fault(
        "useful steps are a constant",
        "fastdef/runtime/scheduler.py",
        "self._stats.useful += end.steps + 1",
        "self._stats.useful += 1",
        SCHEDULER,
    ),
    Fault(
        "the histogram of latencies never observes",
        "fastdef/serving/metrics.py",
        "self.seconds.observe(reply.seconds)",
        "pass",
        "tests/serving/test_metrics.py",
    ),
    Fault(
        "the gradient of L_F lacks the mean of the signs",
        "kernels/reference.py",
        ".sign() - _column(tilt, f)",
        ".sign()",
        "tests/ops/test_smoothing.py -k skewed",
    ),
    Fault(
        "in half precision the direction is 1.6 times too long",
        "fastdef/runtime/trace.py",
        "        (direction,) = torch.autograd.grad(features, images, field)\n",
        "        (direction,) = torch.autograd.grad(features, images, field if dtype.itemsize > 2 else 1.6 * field)\n",
        "tests/runtime/test_trace.py -k half",
    ),
    Fault(
        "gradients that are zero are not seen",
        "fastdef/attacks/_gradients.py",
        "(flat == 0).all(1)",
        "(flat != flat).all(1)",
        "tests/evaluation/test_vanished.py -k cannot",
    ),
]
