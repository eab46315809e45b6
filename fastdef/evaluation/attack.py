"""The attack an evaluation makes, and a data set under it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastdef import distributed
from fastdef._validate import check_positive
from fastdef.attacks import (
    GradientRecord,
    GradientShares,
    check_eps,
    cross_entropy,
    frozen_eval,
    margin,
    pgd,
    predicted,
    step_size,
)
from fastdef.data import Dataset
from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.batches import spans

Classifier = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N, classes) logits


MOST_VANISHED = 0.02  # share of images that may stand without a usable gradient, and the accuracy be a figure


class Attacked(NamedTuple):
    """What an attack made of a batch.

    Attributes:
        images: (N, C, H, W) attacked images.
        vanished: (N,) bool on the CPU, True where no loss gave a gradient that could be followed: what stands here has
            not been tested.
        gradients: by loss, how many of its gradients were of no use.
    """

    images: Tensor
    vanished: Tensor
    gradients: dict[str, GradientShares]


@dataclass(frozen=True)
class Attack:
    """PGD on a classifier, by each of several losses, and of each image the first that it answers wrong.

    Cross-entropy vanishes where a model is sure of itself, whether it is right or only scaled; the margin does not.
    :func:`evaluate` gives it the undefended classifier.

    Attributes:
        eps: radius, in pixel units.
        steps: number of steps, by each loss; one is FGSM without a random start.
        step: step size; :func:`fastdef.attacks.step_size` if not given.
        losses: among "cross_entropy" and "margin" (C&W); each after the first attacks what still stands.
        seed: of the random start.
    """

    eps: float = 8 / 255
    steps: int = 20
    step: float | None = None
    losses: tuple[str, ...] = ("cross_entropy", "margin")
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.eps, name="eps", where="Attack")
        check_eps(self.eps, where="Attack")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Attack needs at least one step, a whole number of them, got {self.steps}")
        if not self.losses or not set(self.losses) <= set(_LOSSES):
            raise ValueError(f"Attack needs losses among {', '.join(_LOSSES)}, got {', '.join(self.losses) or 'none'}")

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor, *, batch: int = 0) -> Tensor:
        """Adversarial images; ``batch`` numbers the batch, so that no two start alike."""
        return self.run(model, images, labels, batch=batch).images

    def run(self, model: Classifier, images: Tensor, labels: Tensor, *, batch: int = 0) -> Attacked:
        """The same, with what the gradients were like."""
        generator = torch.Generator(images.device).manual_seed(self.seed * 1_000_003 + batch)
        rows = torch.arange(len(images), device=images.device)
        made, vanished = images, torch.ones(len(images), dtype=torch.bool)
        gradients: dict[str, GradientShares] = {}
        for name in self.losses:
            points, record = self._by(name, model, images[rows], labels[rows], generator)
            falls = _wrong(model, points, labels[rows])
            keep = falls if gradients else torch.ones_like(falls)  # where no loss helps, the first one's points
            made = made.index_put((rows[keep],), points[keep])
            vanished[rows.cpu()] &= record.vanished
            gradients[name] = record.shares()
            rows = rows[~falls]
            if not len(rows):
                break
        return Attacked(made, vanished, gradients)

    def _by(
        self, loss: str, model: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, GradientRecord]:
        record = GradientRecord(len(images))
        points = pgd(
            model,
            images,
            labels,
            eps=self.eps,
            step=step_size(self.eps, self.steps) if self.step is None else self.step,
            steps=self.steps,
            random_start=self.steps > 1,
            loss=record.watched(_LOSSES[loss]),
            generator=generator,
            observe=record.observe,
        )
        return points, record


_LOSSES = {"cross_entropy": cross_entropy, "margin": margin}


@torch.no_grad()
def _wrong(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    with frozen_eval(model):
        return predicted(model(images)) != labels


def gradients_vanished(name: str, count: int, total: int) -> str:
    """A sentence about a figure that is none, because too many images stand untested; empty where it is one."""
    if count <= MOST_VANISHED * total:
        return ""
    return (
        f"{name}: {count} of {total} images stand because the attack's gradients vanished (zero, NaN or saturated), "
        "which says nothing of robustness: no figure. fastdef evaluate-adaptive attacks without gradients too."
    )


class Batch(NamedTuple):
    """A part of a data set under attack.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        attacked: the same, attacked.
        labels: (N,) int64.
        ids: (N,) int64 places in the data set, on the CPU.
        vanished: (N,) bool on the CPU, see :class:`Attacked`.
        gradients: by loss, see :class:`Attacked`.
    """

    images: Tensor
    attacked: Tensor
    labels: Tensor
    ids: Tensor
    vanished: Tensor
    gradients: dict[str, GradientShares]


def attacked_batches(model: Classifier, dataset: Dataset, attack: Attack, *, batch_size: int = 256) -> Iterator[Batch]:
    """The data set in order, each batch with its attack on ``model``. The random starts depend on the batch size.

    On several ranks each has every W-th batch.

    Raises:
        ValueError: for a batch size under 1, or labels that the model has no class for.
    """
    if batch_size < 1:
        raise ValueError(f"attacked_batches needs a batch size from 1 up, got {batch_size}")
    return _attacked(model, dataset, attack, batch_size)


def _attacked(model: Classifier, dataset: Dataset, attack: Attack, size: int) -> Iterator[Batch]:
    parts = spans(len(dataset), size)
    for number in distributed.shard(len(parts)):
        start, stop = parts[number]
        images, labels = dataset.floats(start, stop), dataset.labels[start:stop]
        attacked = attack.run(model, images, labels, batch=number)
        yield Batch(images, attacked.images, labels, torch.arange(start, stop), attacked.vanished, attacked.gradients)


def accuracy(classify: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> Accuracy:
    """Right answers over batches of (images, labels); a module answers in eval mode and is left as it was.

    Raises:
        ValueError: if there is no image.
    """
    correct = count = 0
    for images, labels in batches:
        with torch.no_grad(), frozen_eval(classify):
            correct += int((predicted(classify(images)) == labels).sum())
        count += len(labels)
    return Accuracy(correct, count)
