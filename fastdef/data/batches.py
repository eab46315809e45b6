"""Batches of a data set, augmented on its device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastdef.data.dataset import Dataset

_SEEDS = 2**32 - 5  # a CPU generator looks at 32 bits of its seed; a prime keeps the others from being lost

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class RandomCropFlip:
    """Shift by up to ``padding`` pixels over a black border, and mirror one in two: each image by its own draw.

    Attributes:
        padding: widest shift.
        flip: whether to mirror.

    Raises:
        ValueError: for a padding under 0.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"RandomCropFlip needs a padding from 0 up, got {self.padding}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) -> the same shape and dtype; draws come from a CPU generator, one gather does the rest."""
        n, c, h, w = images.shape
        shifts = torch.randint(0, 2 * self.padding + 1, (2, n, 1), generator=generator)
        mirrored = torch.randint(0, 2, (n, 1), generator=generator).bool() & self.flip
        columns = torch.where(mirrored, torch.arange(w - 1, -1, -1), torch.arange(w)) + shifts[1]
        rows = (torch.arange(h) + shifts[0]).to(images.device)
        columns = columns.to(images.device)
        padded = pad(images, [self.padding] * 4)
        sample = torch.arange(n, device=images.device)[:, None, None, None]
        channel = torch.arange(c, device=images.device)[None, :, None, None]
        return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Batches:
    """A data set in batches, anew each epoch.

    Order and augmentation are functions of (seed, epoch) alone, so a run that was interrupted sees what it would have
    seen. They are drawn on the CPU, so a run on CUDA sees it too.

    Args:
        dataset: on the device where batches are wanted.
        batch_size: images a batch.
        shuffle: another order each epoch.
        augment: what to do with the images of a batch, for example :class:`RandomCropFlip`.
        seed: of everything.
        drop_last: leave out a last batch that is not full.

    Raises:
        ValueError: for a batch size under 1, or one that leaves no batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        augment: Augment | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.drop_last = drop_last
        if batch_size < 1 or len(self) == 0:
            raise ValueError(
                f"Batches needs a batch size from 1 to {len(dataset)}, the images there are, got {batch_size}"
            )

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, C, H, W) float32 images in [0, 1] and (B,) labels, once through the data."""
        generator = torch.Generator().manual_seed(((self.seed << 20) + epoch) % _SEEDS)
        count = len(self.dataset)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        order = order.to(self.dataset.images.device)
        for number in range(len(self)):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            images = self.dataset.images[rows]
            if self.augment is not None:
                images = self.augment(images, generator)
            yield images.float() / 255, self.dataset.labels[rows]
