"""One model under attacks of every strength: the form of the AFA paper's Tables 1 to 3 and Figs. 3 and 6."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastdef import distributed
from fastdef.attacks import RATIOS, adaptive_pgd, frozen_eval, predicted, step_size
from fastdef.data import Dataset
from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.attack import Attack, gradients_vanished
from fastdef.evaluation.batches import spans
from fastdef.evaluation.shift import Shift, Watch
from fastdef.nn import AFA2d, MultiBatchNorm2d, branch, first_group, fixed_fusing_weight

PAPER = (0.0, 1 / 255, 2 / 255, 4 / 255, 8 / 255)

View = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Strengths:
    """The results of ``evaluate_strengths``. Every attack is white-box: crafted on what it is counted against.

    Attributes:
        strengths: eps, in pixel units.
        steps: of PGD.
        rows: by the part of the model that answers, an accuracy a strength.
        strongest: by attack, accuracies of the whole model at the largest eps.
        layer: whose channels ``shifts`` describes.
        shifts: a strength each.
        vanished: by the part, a count a strength: images answered right whose attack had no gradient to follow.
    """

    strengths: tuple[float, ...]
    steps: int
    rows: dict[str, list[Accuracy]]
    strongest: dict[str, Accuracy]
    layer: str
    shifts: list[Shift]
    vanished: dict[str, list[int]]

    @property
    def refusals(self) -> list[str]:
        """A sentence for every accuracy that is no figure: too many of its images were not really attacked."""
        sentences = [
            gradients_vanished(f"{name}, eps {eps * 255:g}/255", count, accuracy.count)
            for name, accuracies in self.rows.items()
            for eps, accuracy, count in zip(self.strengths, accuracies, self.vanished[name], strict=True)
        ]
        return [sentence for sentence in sentences if sentence]

    def mean(self, row: str) -> float:
        """Mean accuracy over the strengths, the paper's last column."""
        return sum(accuracy.value for accuracy in self.rows[row]) / len(self.strengths)

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able; eps in 255ths."""
        return {
            "eps": [round(eps * 255, 6) for eps in self.strengths],
            "steps": self.steps,
            "rows": {
                name: {"mean": self.mean(name), "by_eps": [accuracy.to_json() for accuracy in accuracies]}
                for name, accuracies in self.rows.items()
            },
            "strongest": {name: accuracy.to_json() for name, accuracy in self.strongest.items()},
            "vanished": self.vanished,
            "refusals": self.refusals,
            "layer": self.layer,
            "shifts": [asdict(shift) for shift in self.shifts],
        }


def submodels(model: nn.Module) -> dict[str, View]:
    """The parts of a model that can answer alone, the whole first.

    An AFA model: the whole, either branch, and an even blend. A model of stage I: each branch. Another: itself.
    """
    if any(isinstance(module, AFA2d) for module in model.modules()):
        blends = {"branch 0 (W0 = 1)": 1.0, "blend (W0 = 0.5)": 0.5, "branch K-1 (W0 = 0)": 0.0}
        return {"AFA": nullcontext, **{name: _fixed(model, w0) for name, w0 in blends.items()}}
    branches = [module.branches for module in model.modules() if isinstance(module, MultiBatchNorm2d)]
    return {f"branch {k}": _branch(model, k) for k in range(min(branches))} if branches else {"model": nullcontext}


def evaluate_strengths(
    model: nn.Module,
    dataset: Dataset,
    *,
    strengths: Sequence[float] = PAPER,
    steps: int = 20,
    layer: str | None = None,
    parts: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], object] = lambda images: None,
) -> Strengths:
    """Accuracy of each part of a model under white-box PGD of every strength, and more attacks at the strongest.

    PGD is by cross-entropy and, on what still stands, by the margin; see :class:`Attack`.

    On several ranks each has its share of the batches, and all find what one would.

    Args:
        model: plain, of stage I, or AFA; on the device of the data. Left as it was.
        dataset: with at least one image.
        strengths: eps, in pixel units, from 0 up.
        steps: of PGD, each 2.5 eps / steps long.
        layer: whose channels' mean and variance are followed over the strengths; the first group if None.
        parts: each part of the model too, and the attacks at the strongest; else the whole under PGD alone.
        batch_size: images at once.
        seed: of the random starts.
        progress: called with the images of each batch that one attack is through with; see ``rounds``.

    Raises:
        ValueError: for an empty data set, a batch size under 1, or strengths that are none or negative.
    """
    if len(dataset) == 0 or batch_size < 1:
        raise ValueError(f"evaluate_strengths needs images and a batch size, got {len(dataset)} and {batch_size}")
    if not strengths or min(strengths) < 0:
        raise ValueError(f"evaluate_strengths needs strengths from 0 up, got {tuple(strengths)}")
    layer = first_group(model) if layer is None else layer
    batches = _Batches(dataset, batch_size, seed, progress)
    rows: dict[str, list[Accuracy]] = {}
    vanished: dict[str, list[int]] = {}
    shifts: list[Shift] = []
    whole = next(iter(submodels(model)))
    with frozen_eval(model):
        for name, view in submodels(model).items():
            if not (parts or name == whole):
                continue
            with view():
                for eps in strengths:
                    watch = Watch(model, layer) if name == whole else None
                    right, untested = batches.right(model, _pgd(eps, steps), watch).unbind(1)
                    rows.setdefault(name, []).append(Accuracy(int(right.sum()), len(right)))
                    vanished.setdefault(name, []).append(int((right & untested).sum()))
                    if watch is not None:
                        shifts.append(watch.shift())
        strongest = _strongest(model, batches, max(strengths), steps) if parts else {}
    return Strengths(tuple(strengths), steps, rows, strongest, layer, shifts, vanished)


def rounds(model: nn.Module, *, strengths: Sequence[float] = PAPER) -> int:
    """How many times ``evaluate_strengths``, with all parts, goes through the data."""
    fused = any(isinstance(module, AFA2d) for module in model.modules())
    return len(submodels(model)) * len(strengths) + (0 if max(strengths) == 0 else 2 + fused * len(RATIOS))


_Craft = Callable[[nn.Module, Tensor, Tensor, torch.Generator, int], tuple[Tensor, Tensor]]  # images, who vanished


def _pgd(eps: float, steps: int, losses: tuple[str, ...] = Attack.losses) -> _Craft:
    if eps == 0:
        return lambda model, images, labels, generator, batch: (images, _nobody(images))

    def craft(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, batch: int
    ) -> tuple[Tensor, Tensor]:
        attacked = Attack(eps=eps, steps=steps, losses=losses).run(model, images, labels, batch=batch)
        return attacked.images, attacked.vanished

    return craft


def _nobody(images: Tensor) -> Tensor:
    return torch.zeros(len(images), dtype=torch.bool)


def _strongest(model: nn.Module, batches: "_Batches", eps: float, steps: int) -> dict[str, Accuracy]:
    """FGSM, C&W, and on an AFA model the adaptive attack."""
    if eps == 0:
        return {}
    with next(iter(submodels(model).values()))():
        accuracies = {
            "FGSM": batches.accuracy(model, _pgd(eps, 1, ("cross_entropy",))),
            f"C&W margin, PGD-{steps}": batches.accuracy(model, _pgd(eps, steps, ("margin",))),
        }
        if any(isinstance(module, AFA2d) for module in model.modules()):
            accuracies |= _adaptive(model, batches, eps, steps)
    return accuracies


def _adaptive(model: nn.Module, batches: "_Batches", eps: float, steps: int) -> dict[str, Accuracy]:
    step = step_size(eps, steps)
    stood = torch.ones(len(batches.dataset), dtype=torch.bool)
    alone: list[Accuracy] = []
    for ratio in RATIOS:

        def craft(
            model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, batch: int, r: float = ratio
        ) -> tuple[Tensor, Tensor]:
            attack = partial(adaptive_pgd, eps=eps, step=step, steps=steps, ratio=r, generator=generator)
            return attack(model, images, labels), _nobody(images)

        right = batches.right(model, craft)[:, 0]
        alone.append(Accuracy(int(right.sum()), len(right)))
        stood &= right
    return {
        "adaptive PGD, lowest of seven": min(alone, key=lambda accuracy: accuracy.value),
        "adaptive PGD, images that stand all seven": Accuracy(int(stood.sum()), len(stood)),
    }


class _Batches:
    """A data set in order, attacked batch by batch; on several ranks by turns."""

    def __init__(self, dataset: Dataset, size: int, seed: int, progress: Callable[[int], object]) -> None:
        self.dataset, self._size, self._seed, self._progress = dataset, size, seed, progress

    def accuracy(self, model: nn.Module, craft: _Craft) -> Accuracy:
        right = self.right(model, craft)[:, 0]
        return Accuracy(int(right.sum()), len(right))

    def right(self, model: nn.Module, craft: _Craft, watch: "Watch | None" = None) -> Tensor:
        """(N, 2) whether each image is classified right, and whether its gradients vanished; on every rank's CPU."""
        return torch.cat(distributed.all_gather_shards(list(self._own(model, craft, watch))))

    def _own(self, model: nn.Module, craft: _Craft, watch: "Watch | None") -> Iterator[Tensor]:
        parts = spans(len(self.dataset), self._size)
        for number in distributed.shard(len(parts)):
            start, stop = parts[number]
            images, labels = self.dataset.floats(start, stop), self.dataset.labels[start:stop]
            batch = self._seed * 1_000_003 + number
            generator = torch.Generator(images.device).manual_seed(batch)
            crafted, vanished = craft(model, images, labels, generator, batch)
            with torch.no_grad():
                logits = model(crafted) if watch is None else watch(crafted)
            self._progress(min(distributed.world_size() * self._size, len(self.dataset) - start))
            yield torch.stack([(predicted(logits) == labels).cpu(), vanished], 1)


def _fixed(model: nn.Module, w0: float) -> View:
    return lambda: fixed_fusing_weight(model, w0)


def _branch(model: nn.Module, k: int) -> View:
    return lambda: branch(model, k)
