"""The suite: every case of every row, one batch after another, each kept on the disk before the next begins."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdef import distributed
from fastdef._validate import check_installed
from fastdef.attacks import check_differentiable, check_eps, frozen_eval
from fastdef.data import Dataset, sha256
from fastdef.evaluation.adaptive.alignment import alignment
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.budget import SMOKE, Budget
from fastdef.evaluation.adaptive.journal import Journal, Unit, joined
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.probe import probe
from fastdef.evaluation.adaptive.results import AdaptiveResults, Line
from fastdef.evaluation.adaptive.rows import blackbox, bpda, later, papers, rand, sanity, static, transfer, unrolled
from fastdef.evaluation.adaptive.score import Score, lowest
from fastdef.evaluation.adaptive.target import FixedBatch, Target
from fastdef.evaluation.batches import spans
from fastdef.evaluation.described import described

_BY_AUTOATTACK = {1, 6, 7}
_ALIGNED_ON = 4  # images that the attacks' gradient is held against finite differences on
_EXAMPLES = 4  # attacked images of a case that the report shows
ROWS = (sanity, static, transfer, bpda, unrolled, papers, blackbox, rand, later)


@dataclass(frozen=True)
class Progress:
    """Where a suite is.

    Attributes:
        case: that is being attacked.
        done: images done in it.
        total: its images.
        share: of the whole suite that is done, in images of all its cases.
    """

    case: str
    done: int
    total: int
    share: float


def evaluate_adaptive(
    target: Target,
    dataset: Dataset,
    *,
    budget: Budget = SMOKE,
    eps: float = 8 / 255,
    surrogate: nn.Module | None = None,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], object] = lambda progress: None,
) -> AdaptiveResults:
    """Attack a target in every way there is, and say what it is worth.

    Args:
        target: what is deployed; see :class:`Target`.
        dataset: on the target's device.
        budget: the effort; its ``images`` bounds how many of the data set are used.
        eps: radius in pixel units.
        surrogate: an independent model of the same task, in eval mode, whose attacked images are tried too.
        rows: which of the rows 0 to 8; the budget's if not given.
        seed: of everything that is drawn in an attack.
        folder: where the state of the work is kept; nowhere if not given. On several ranks they share the work through
            it, so it has to be given and seen by all of them.
        resume: go on with what the folder holds. The accuracies are those of an uninterrupted run.
        progress: called after every unit of this rank's work.

    Raises:
        ValueError: for an empty data set, a radius outside [0, 1], a target of one class, a classifier without
            gradients, rows that there are not, a folder that holds other work, none on several ranks, or a missing
            library.
    """
    rows = budget.rows if rows is None else rows
    if set(rows) & _BY_AUTOATTACK:
        check_installed("pyautoattack", extra="eval", where="the adaptive evaluation")
    if len(dataset) == 0 or not set(rows) <= set(range(len(ROWS))):
        raise ValueError(f"evaluate_adaptive needs images, and rows from 0 to 8, got {len(dataset)} and {list(rows)}")
    check_eps(eps, where="evaluate_adaptive")
    dataset = dataset.subset(budget.images)
    if target.classifier is not None and target.classifier.training:
        raise ValueError("evaluate_adaptive needs a classifier in eval mode, got one in training: call model.eval()")
    for model in (target.classifier, surrogate):
        if model is not None:
            check_differentiable(model, dataset.floats(0, 1))
    classes = _classes(target, dataset)
    plan = Plan(_fast(target, budget, len(dataset)), target.classifier, budget, eps, len(dataset), classes, surrogate)
    if target.classifier is not None and 3 in rows:
        images, labels = dataset.floats(0, min(_ALIGNED_ON, len(dataset))), dataset.labels[:_ALIGNED_ON]
        plan = replace(plan, alignment=distributed.on_rank0(partial(alignment, plan, images, labels, seed=seed)))
    planned = [case for row in sorted(set(rows)) for case in ROWS[row].cases(plan)]
    there = {case.key for case in planned if isinstance(case, AttackCase)}
    cases = [case for case in planned if isinstance(case, AttackCase) and (case.needs is None or case.needs in there)]
    left = [case if isinstance(case, NotRun) else _alone(case) for case in planned if case not in cases]
    settings = _settings(target, dataset, budget, eps, surrogate, seed)
    known = distributed.on_rank0(partial(probe, target, surrogate, dataset))
    with (
        ExitStack() as stack,
        frozen_eval(target.classifier),
        frozen_eval(surrogate),
    ):  # weight gradients cost
        if folder is None:
            if distributed.world_size() > 1:
                raise ValueError(
                    f"evaluate_adaptive on {distributed.world_size()} processes needs a folder that all of them see, "
                    "got none"
                )
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        journal = distributed.on_rank0(partial(Journal, folder, settings, known, resume=resume))
        worker = _Worker(journal, dataset, budget, seed, cases, progress)
        worker.work()
        distributed.all_gather_object(None)  # until the last has done its share
        lines = [worker.line(case) for case in cases]
    return AdaptiveResults(lines, left, settings, target.random, plan.alignment)


def _classes(target: Target, dataset: Dataset) -> int:
    first, again = (target.answer(dataset.floats(0, 1), torch.zeros(1, dtype=torch.int64)).logits for _ in range(2))
    if not target.random and not torch.allclose(first, again, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise ValueError(
            "evaluate_adaptive needs a target that says whether it is random, got one that is and does not"
        )
    classes = first.shape[1]
    if classes < 2:
        raise ValueError(f"evaluate_adaptive needs at least two classes, got {classes}: no answer could be wrong")
    if int(dataset.labels.max()) >= classes:
        raise ValueError(f"evaluate_adaptive needs labels below {classes}, got {int(dataset.labels.max())}")
    return classes


def _alone(case: AttackCase) -> NotRun:
    return NotRun(case.row, case.name, "it takes another row's images, and that was not asked for")


class _Worker:
    """Does units of work, or finds them done."""

    def __init__(
        self,
        journal: Journal,
        dataset: Dataset,
        budget: Budget,
        seed: int,
        cases: Sequence[AttackCase],
        progress: Callable[[Progress], object],
    ) -> None:
        self._journal = journal
        self._dataset = dataset
        self._budget = budget
        self._seed = seed
        self._cases = {case.key: case for case in cases}
        self._progress = progress

    def work(self) -> None:
        """This rank's units of every case, one after another."""
        units = [(case, number, *span) for case in self._cases.values() for number, span in self._spans(case)]
        units = [unit for unit in units if self._owner(unit[0], unit[1]) == distributed.rank()]
        total, done = sum(stop - start for _, _, start, stop in units), 0
        for case, number, start, stop in units:
            if self._journal.read(case.key, number) is None:
                self._journal.write(case.key, number, self._work(case, number, start, stop))
            done += stop - start
            self._progress(Progress(f"{case.row} {case.name}", stop, self._count(case), done / total))

    def line(self, case: AttackCase) -> Line:
        """A case whose units are all done."""
        units = [self._unit(case.key, number) for number, _ in self._spans(case)]
        predictions, count = joined(units), self._count(case)
        crafting = sum(unit.crafting for unit in units) / count
        evaluating = sum(unit.evaluating for unit in units) / count
        examples, places = self._hardest(case, units)
        return Line(
            case=case,
            score=Score.of(predictions) if len(predictions.right) else None,
            crafting=crafting,
            evaluating=evaluating,
            examples=examples,
            places=places,
            steps=predictions.steps.flatten().tolist(),
        )

    def _hardest(self, case: AttackCase, units: list[Unit]) -> tuple[Tensor, list[int]]:
        """The images of a case that are answered right least often, and their places in the data set."""
        starts = [start for _, (start, _) in self._spans(case)]
        places = torch.cat([start + unit.places for start, unit in zip(starts, units, strict=True)])
        shown = _hardest(torch.cat([unit.predictions.right[unit.places] for unit in units]))
        return torch.cat([unit.examples for unit in units])[shown], places[shown].tolist()

    def _count(self, case: AttackCase) -> int:
        return min(case.images, len(self._dataset))

    def _owner(self, case: AttackCase, number: int) -> int:
        """The rank that does a unit; the same for units of a batch of which one takes the other's images."""
        while case.needs is not None:
            case = self._cases[case.needs]
        return (list(self._cases).index(case.key) + number) % distributed.world_size()

    def _spans(self, case: AttackCase) -> Iterator[tuple[int, tuple[int, int]]]:
        return enumerate(spans(self._count(case), self._budget.batch))

    def _work(self, case: AttackCase, number: int, start: int, stop: int) -> Unit:
        images, labels = self._dataset.floats(start, stop), self._dataset.labels[start:stop]
        batch = Batch(
            images=images,
            labels=labels,
            ids=torch.arange(start, stop),
            seed=_seed(self._seed, case.key, number),
            kept=lambda key: self._unit(key, number).images.to(images),
        )
        with case.view(), _seeded(batch):
            begin = time.perf_counter()
            made = lowest(case.evaluate, batch, case.craft(batch), noise_samples=case.noise_samples)
            middle = time.perf_counter()
            predictions = case.evaluate(batch, made, case.noise_samples, SeedStream.EVALUATION)
            end = time.perf_counter()
        each = len(predictions.right) == len(made)  # of planted examples only those that hold are evaluated
        places = _hardest(predictions.right) if each else torch.arange(0)
        kept, examples = made if case.keeps else made[:0], made[places.to(made.device)]
        return Unit(predictions, kept, examples, places, middle - begin, end - middle)

    def _unit(self, key: str, number: int) -> Unit:
        unit = self._journal.read(key, number)
        if unit is None:
            raise ValueError(f"a unit of {key} has gone from the folder: evaluate into another one")
        return unit


def _hardest(right: Tensor) -> Tensor:
    """(K,) places of the images that are answered right least often, by (N, R) answers to them."""
    return right.float().mean(1).argsort(stable=True)[:_EXAMPLES]


@contextmanager
def _seeded(batch: Batch) -> Iterator[None]:
    """Torch's generators belong to the unit: what draws from them inside a model draws the same after a resume."""
    with torch.random.fork_rng(devices=[batch.images.device] if batch.images.is_cuda else []):
        torch.manual_seed(batch.seed)
        yield


def _seed(seed: int, key: str, number: int) -> int:
    """Of a unit: it depends on what the unit is, and not on what was done before it."""
    digest = hashlib.sha256(f"{seed} {key} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def _settings(
    target: Target, dataset: Dataset, budget: Budget, eps: float, surrogate: nn.Module | None, seed: int
) -> dict[str, Any]:
    """All that the accuracies depend on."""
    return {
        "data": f"{dataset.name} {dataset.split}",
        "images": len(dataset),
        "images_sha256": dataset.digest(),
        "eps": eps,
        "seed": seed,
        "budget": budget.to_json(),
        "model_sha256": target.identity if target.classifier is None else sha256(_tensors(target.classifier)),
        "defense": None if target.defense is None else described(target.defense),
        "surrogate_sha256": None if surrogate is None else sha256(_tensors(surrogate)),
        "device": str(dataset.images.device),
        "torch": torch.__version__,
    }


def _fast(target: Target, budget: Budget, images: int) -> Target:
    """The target with a compiled classifier for gradients, where the budget is worth the compiling."""
    if target.classifier is None or not budget.compile:
        return target
    size = budget.batch if target.random else min(budget.batch, images)  # a padded batch costs what a full one does
    return replace(target, classifier=FixedBatch(target.classifier, size, compile=True), batch=size)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in sorted(model.state_dict().items())]
