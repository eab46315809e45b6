"""Row 3: Auto-PGD on what is deployed, BPDA and expectation over the noise, by three losses and lengths of the loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastdef.attacks import (
    Goal,
    Query,
    cross_entropy,
    likeliest,
    margin,
    probability_margin,
    sign_hunter,
    targeted,
    untargeted,
)
from fastdef.evaluation.adaptive.alignment import ALIGNED
from fastdef.evaluation.adaptive.attack_case import Attack, AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.bpda import bpda, iterates
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label

TARGETED = "targeted DLR"
ESTIMATED = "estimated gradient signs"
PROBABILITY_MARGIN = "probability margin"
_LOSSES = {"cross-entropy": cross_entropy, "margin": margin, PROBABILITY_MARGIN: probability_margin}
NAMES = {"cross-entropy": "APGD-CE", "margin": "C&W margin, APGD", TARGETED: "APGD-DLR, targeted"}


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Every loss at every depth; the gradient averaged along the way; estimates, where the gradient is another's."""
    budget, defense = plan.budget, plan.target.defense
    if plan.target.classifier is None:
        yield NotRun(3, "BPDA", "no gradients")
        return
    depths: tuple[int | None, ...] = (None,) if defense is None else budget.depths
    case = partial(AttackCase, 3, evaluate=by_label(plan.target), eps=plan.eps, noise_samples=plan.noise_samples)
    effort = {"eot": plan.eot, "iterations": budget.iterations}
    for depth in depths:
        deepest = depth is not None and depth == max(budget.depths) > min(budget.depths)
        images = plan.expensive_images if deepest else plan.images
        for loss, name in NAMES.items():
            if loss == TARGETED and plan.classes < 4:
                yield NotRun(3, name, f"its loss needs four classes, and there are {plan.classes}")
                continue
            label = name if depth is None else f"{name} through {depth} steps"
            yield case(label, Through(plan, plan.gradient, loss, depth, **effort), images=images)
    if defense is not None:
        steps = budget.averaged_steps
        name = f"APGD-CE, mean gradient of {steps} steps"
        craft = Averaged(plan, "BPDA, mean over the iterates", steps, **effort)
        yield case(name, craft, images=plan.expensive_images)
    if plan.alignment is not None and plan.alignment < ALIGNED:
        yield case(ESTIMATED, Estimated(plan, budget.estimates, plan.eot), images=plan.expensive_images)


@dataclass(frozen=True)
class Through(Attack):
    """Auto-PGD by one loss, the loop cut after ``steps``.

    Attributes:
        gradient: how it is got, in words.
        loss: a key of ``NAMES``, or the probability margin.
        steps: of the loop; None for all there are.
        eot: draws that a gradient is the mean of.
        iterations: of Auto-PGD.
    """

    gradient: str
    loss: str
    steps: int | None
    eot: int
    iterations: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points by each of the goals."""
        return [self.plan.search(self.asks(batch), batch, iterations=self.iterations)]

    def asks(self, batch: Batch) -> list[Query]:
        """What it raises, goal by goal."""
        draws, target = self.draws(batch), self.plan.target
        return [bpda(target, goal, draws, eot=self.eot, steps=self.steps) for goal in self._goals(batch)]

    def draws(self, batch: Batch) -> NoiseSeeds:
        """Of the noise that it attacks."""
        return NoiseSeeds(batch.ids, SeedStream.ATTACK)

    def _goals(self, batch: Batch) -> list[Goal]:
        if self.loss != TARGETED:
            return [untargeted(batch.labels, _LOSSES[self.loss])]
        logits = self.plan.target.answer(batch.images, NoiseSeeds(batch.ids, SeedStream.ATTACK).first()).logits
        return [targeted(batch.labels, target) for target in likeliest(logits, batch.labels, self.plan.budget.targets)]


@dataclass(frozen=True)
class Averaged(Attack):
    """Auto-PGD by the gradient averaged along the loop.

    Attributes:
        gradient: how it is got, in words.
        steps: of the loop.
        eot: draws that a gradient is the mean of.
        iterations: of Auto-PGD.
    """

    gradient: str
    steps: int
    eot: int
    iterations: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        draws, goal = NoiseSeeds(batch.ids, SeedStream.ATTACK), untargeted(batch.labels)
        ask = iterates(self.plan.target, goal, draws, eot=self.eot, steps=self.steps)
        return [self.plan.search([ask], batch, iterations=self.iterations)]


@dataclass(frozen=True)
class Estimated(Attack):
    """The gradient's signs, estimated from answers: where the gradient that there is belongs to something else.

    Of a random target the same few draws are asked every time, so that a difference is the flip's.

    Attributes:
        queries: answers that the estimate takes, of ``draws`` each.
        draws: of the noise.
    """

    queries: int
    draws: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        plan, count = self.plan, self.draws
        ids = NoiseSeeds(batch.ids, SeedStream.ATTACK).next(torch.arange(len(batch.ids)), count)
        labels = batch.labels.repeat_interleave(count)

        def lead(points: Tensor) -> Tensor:
            logits = plan.target.logits(points.repeat_interleave(count, 0), ids, plan.typical_steps)
            return _lead(logits, labels).unflatten(0, (-1, count)).mean(1)

        return [sign_hunter(lead, batch.images, eps=plan.eps, queries=self.queries, generator=batch.generator())]


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) by how much the likeliest other class leads the label."""
    label = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - label
