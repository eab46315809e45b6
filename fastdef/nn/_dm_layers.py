"""What the two DeepMind networks have in common: their convolution and their activations."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {"silu": F.silu, "relu": F.relu}


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's padding: one pixel around, or at stride 2 right and below alone."""

    def __init__(self, in_planes: int, planes: int, *, stride: int) -> None:
        super().__init__(in_planes, planes, 3, stride=stride, padding=1 if stride == 1 else 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, planes, H / stride, W / stride)."""
        return super().forward(x if self.stride == (1, 1) else F.pad(x, (0, 1, 0, 1)))


def activation_of(name: object, *, where: str) -> Activation:
    """The function of that name.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"{where} needs an activation out of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
