"""The classifier that a defense stands before."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def called(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The network's answer to (N, C, H, W) images, in the precision of its weights whatever the caller casts."""
    with torch.autocast(images.device.type, enabled=False):
        return network(images)
