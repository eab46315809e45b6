"""How a model of an epoch stands an attack: a figure to watch, on few images and by few steps; not an evaluation."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastdef.attacks import pgd, predicted
from fastdef.data import Dataset

_AT_ONCE = 128
_ATTACKED = 512  # images at most


def robust_accuracy(model: nn.Module, dataset: Dataset, eps: float) -> float:
    """Share of right answers under PGD-10 on the first 512 images; on all of them where eps is 0."""
    right = count = 0
    for images, labels in attacked(model, dataset, eps):
        with torch.no_grad():
            right += int((predicted(model(images)) == labels).sum())
        count += len(labels)
    return right / count


def attacked(model: nn.Module, dataset: Dataset, eps: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images under attack, and their labels; of all images as they are where eps is 0."""
    count = len(dataset) if eps == 0 else min(_ATTACKED, len(dataset))
    generator = torch.Generator(dataset.images.device).manual_seed(0)
    for start in range(0, count, _AT_ONCE):
        stop = min(start + _AT_ONCE, count)
        images, labels = dataset.floats(start, stop), dataset.labels[start:stop]
        if eps > 0:
            images = pgd(model, images, labels, eps=eps, step=eps / 4, steps=10, generator=generator)
        yield images, labels
