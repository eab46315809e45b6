"""The classifier that a defense stands before."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def check_model(model: nn.Module) -> None:
    """Refuse a model that does not answer as it was trained to.

    Raises:
        ValueError: for one in training mode, all of it or a part.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("ActiveDefense needs a model in eval mode, got one in training mode; call model.eval()")


@torch.no_grad()
def called(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The network's answer to (N, C, H, W) images, in the precision of its weights whatever the caller casts."""
    with torch.autocast(images.device.type, enabled=False):
        return network(images)
