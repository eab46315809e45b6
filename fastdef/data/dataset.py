"""A labelled set of images, whole in memory."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdef.data._sha256 import sha256


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
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    flip: bool = True

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
        if count < 1:
            raise ValueError(f"{self.name} needs a count of images from 1 up, got {count}")
        return self._part(0, count, self.split)

    def floats(self, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop`` as float32 in [0, 1]."""
        return self.images[start:stop].float() / 255

    def digest(self) -> str:
        """SHA-256 of images and labels, in their order and wherever they are; not of what classes are called."""
        return sha256([self.images, self.labels])

    def fit(self) -> "Dataset":
        """All but the last tenth: what a model is fitted to where its validation is held out."""
        return self._part(0, len(self) - len(self) // 10, "fit")

    def validation(self) -> "Dataset":
        """The last tenth.

        Raises:
            ValueError: for fewer than ten images.
        """
        if len(self) < 10:
            raise ValueError(f"{self.name} needs ten images for a tenth to validate with, got {len(self)}")
        return self._part(len(self) - len(self) // 10, len(self), "validation")

    def _part(self, start: int, stop: int, split: str) -> "Dataset":
        return replace(self, images=self.images[start:stop], labels=self.labels[start:stop], split=split)
