"""The first layer of every model: images in [0, 1] to what the convolutions were trained on."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std of each channel, with the constants as buffers, so that they travel with the model.

    Args:
        mean: one finite number a channel.
        std: one finite number above zero a channel.

    Raises:
        ValueError: if the two do not have the same, non-zero, length, or hold anything else.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not mean or len(mean) != len(std):
            raise ValueError(f"Normalize needs one mean and one std a channel, got {len(mean)} and {len(std)}")
        if not all(math.isfinite(m) for m in mean) or not all(math.isfinite(s) and s > 0 for s in std):
            raise ValueError(f"Normalize needs finite means and stds > 0, got {list(mean)} and {list(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> the same shape, normalized."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the number of channels; the constants may be on the meta device."""
        return f"channels={self.mean.shape[0]}"


def first_layer(normalize: nn.Module | None, in_channels: int, *, where: str) -> nn.Module:
    """The model's ``normalize``: Identity for None, so that layer names are the same with and without it.

    Raises:
        ValueError: if a Normalize has another number of channels than the model.
    """
    if normalize is None:
        return nn.Identity()
    if isinstance(normalize, Normalize) and normalize.mean.shape[0] != in_channels:
        raise ValueError(f"{where} has {in_channels} input channels, its Normalize {normalize.mean.shape[0]}")
    return normalize
