"""The attack an evaluation makes, and a data set under it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastdef import distributed
from fastdef._validate import check_positive
from fastdef.attacks import check_eps, cross_entropy, frozen_eval, margin, pgd, predicted, step_size
from fastdef.data import Dataset
from fastdef.evaluation.accuracy import Accuracy

Classifier = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N, classes) logits


@dataclass(frozen=True)
class Attack:
    """PGD on a classifier; :func:`evaluate` gives it the undefended one.

    Attributes:
        eps: radius, in pixel units.
        steps: number of steps; one is FGSM without a random start.
        step: step size; :func:`fastdef.attacks.step_size` if not given.
        loss: "cross_entropy", or "margin" (C&W).
        seed: of the random start.
    """

    eps: float = 8 / 255
    steps: int = 20
    step: float | None = None
    loss: str = "cross_entropy"
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.eps, name="eps", where="Attack")
        check_eps(self.eps, where="Attack")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Attack needs at least one step, a whole number of them, got {self.steps}")
        if self.loss not in _LOSSES:
            raise ValueError(f"Attack needs a loss among {', '.join(_LOSSES)}, got {self.loss!r}")

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor, *, batch: int = 0) -> Tensor:
        """Adversarial images; ``batch`` numbers the batch, so that no two start alike."""
        return pgd(
            model,
            images,
            labels,
            eps=self.eps,
            step=step_size(self.eps, self.steps) if self.step is None else self.step,
            steps=self.steps,
            random_start=self.steps > 1,
            loss=_LOSSES[self.loss],
            generator=torch.Generator(images.device).manual_seed(self.seed * 1_000_003 + batch),
        )


_LOSSES = {"cross_entropy": cross_entropy, "margin": margin}


class Batch(NamedTuple):
    """A part of a data set under attack.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        attacked: the same, attacked.
        labels: (N,) int64.
        ids: (N,) int64 places in the data set, on the CPU.
    """

    images: Tensor
    attacked: Tensor
    labels: Tensor
    ids: Tensor


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
    for number in distributed.shard(-(-len(dataset) // size)):
        start, stop = number * size, min((number + 1) * size, len(dataset))
        images, labels = dataset.floats(start, stop), dataset.labels[start:stop]
        attacked = attack(model, images, labels, batch=number)
        yield Batch(images, attacked, labels, torch.arange(start, stop))


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
