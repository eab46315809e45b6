"""The step by plain autograd, for a network whose trace is not what the network computes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastdef import ops


class PlainStep(nn.Module):
    """images -> (loss, direction), by running the network and its backward as they are.

    What :class:`fastdef.runtime.trace.TracedStep` gives, several times slower: nothing is folded, compiled or in half
    precision, but whatever the network does in Python is done.

    Attributes:
        features: M, the number of features of one image.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], *, features: int) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, nn.Module does not register it as a child
        self.features = features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) images -> (N,) losses, (N, C, H, W) directions, both in the precision of the images."""
        return plain_step(self._network[0], images)


def plain_step(network: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each image, and M * dL_F/dt.

    Raises:
        ValueError: if the features do not depend on the image by a gradient.
    """
    with torch.enable_grad():
        images = images.detach().contiguous().requires_grad_()
        features = network(images)
        if not features.requires_grad:
            raise ValueError("the defense needs features with a gradient, got a layer whose output has none")
        loss, field = ops.smoothing_loss_and_field(features.detach())
        (direction,) = torch.autograd.grad(features, images, field, allow_unused=True)
    if direction is None:
        raise ValueError("the defense needs features of the image, got a layer whose output does not depend on it")
    return loss.to(images.dtype), direction
