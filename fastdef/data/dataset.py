"""A labelled set of images, whole in memory."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdef.data._sha256 import sha256

_HOLDING_OUT = 0  # seed of the tenth to validate with: of every command the same, or one would train on another's


@dataclass(frozen=True)
class Dataset:
    """Images as uint8 on one device: CIFAR-10's training set takes 154 MB, a quarter of it as floats.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        classes: name of each class.
        name: of the data set.
        split: "train", "test", "fit" or "validation".
        flip: whether a mirrored image is of the same class.
        notes: what its user should know of how it was read: a line for each.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    flip: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            got = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise ValueError(f"Dataset needs (N, C, H, W) uint8 images, got {got}")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            got = f"{tuple(self.labels.shape)} {self.labels.dtype}"
            raise ValueError(f"Dataset needs ({len(self.images)},) int64 labels, got {got}")
        if len(self.labels) and not (int(self.labels.min()) >= 0 and int(self.labels.max()) < len(self.classes)):
            span = f"{int(self.labels.min())} to {int(self.labels.max())}"
            raise ValueError(f"{self.name} needs labels from 0 to {len(self.classes) - 1}, got {span}")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> "Dataset":
        """The same on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, count: int) -> "Dataset":
        """The first ``count`` images, or all where there are fewer.

        Raises:
            ValueError: for a count under 1.
        """
        self._check_count(count)
        return self._part(slice(count), self.split)

    def subset(self, count: int, *, seed: int = 0) -> "Dataset":
        """``count`` images drawn at random, of each class its share, or all where there are fewer.

        A smaller subset is the beginning of a larger one. The notes name the classes that it lacks.

        Args:
            count: of images.
            seed: of the draw.

        Raises:
            ValueError: for a count under 1.
        """
        self._check_count(count)
        return self._part(stratified_order(self.labels, seed)[:count], self.split)

    def floats(self, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` as float32 in [0, 1]."""
        return self.images[start:stop].float() / 255

    def digest(self) -> str:
        """SHA-256 of images and labels, in their order and wherever they are; not of what classes are called."""
        return sha256([self.images, self.labels])

    def fit(self) -> "Dataset":
        """All but :meth:`validation`: what a model is fitted to where its validation is held out."""
        order = stratified_order(self.labels, _HOLDING_OUT)
        return self._part(order[: len(self) - len(self) // 10].sort().values, "fit")

    def validation(self) -> "Dataset":
        """A tenth, of each class its share, drawn at random and always the same.

        Raises:
            ValueError: for fewer than ten images.
        """
        if len(self) < 10:
            raise ValueError(f"{self.name} needs ten images for a tenth to validate with, got {len(self)}")
        order = stratified_order(self.labels, _HOLDING_OUT)
        return self._part(order[len(self) - len(self) // 10 :], "validation")

    def _check_count(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"{self.name} needs a count of images from 1 up, got {count}")

    def _part(self, rows: slice | Tensor, split: str) -> "Dataset":
        labels = self.labels[rows]
        note = self._lacking(labels, split)
        return replace(self, images=self.images[rows], labels=labels, split=split, notes=self.notes + note)

    def _lacking(self, labels: Tensor, split: str) -> tuple[str, ...]:
        """A line on the classes that the whole has and a part has not."""
        lacking = sorted(set(self.labels.tolist()) - set(labels.tolist()))
        if not lacking:
            return ()
        names = ", ".join(self.classes[label] for label in lacking[:20])
        return (f"{len(labels)} images of {self.name} {split} lack {len(lacking)} classes: {names}",)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """(N,) labels -> (N,) their places in a random order, of which every part holds each class in its share.

    The k-th image of a class of n comes at (k + 1/2) / n of the way; the images of a class, and classes that come at
    the same place, are in random order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = labels.cpu()[order]
    counts = drawn.bincount()
    by_class = drawn.argsort(stable=True)
    number = torch.empty_like(order)
    number[by_class] = torch.arange(len(drawn)) - (counts.cumsum(0) - counts)[drawn[by_class]]
    place = (number + 0.5) / counts[drawn].double()
    return order[place.argsort(stable=True)]
