"""Pre-activation residual network as DeepMind's robust models have it, named so that their weights load."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdef.nn._dm_layers import Activation, Conv3x3, activation_of
from fastdef.nn._normalize import first_layer
from fastdef.nn._sizes import check_sizes


class DMPreActResNet(nn.Module):
    """PreActResNet-18 or -34 of Rebuffi et al. (2021), for small images.

    Unlike ``PreActResNet18`` it activates by SiLU, a convolution of stride 2 pads right and below alone, and a shortcut
    is a 3x3 convolution of the block's raw input. The groups ``layer_0`` ... ``layer_3`` have 64, 128, 256 and 512
    channels at the input's resolution, a half, a quarter and an eighth of it. Each outputs the raw sum of its last
    residual block.

    Args:
        depth: 18 or 34.
        activation: "silu" or "relu".
        num_classes: number of logits.
        in_channels: channels of the images.
        normalize: module that runs first, on images in [0, 1]; None for none.

    Raises:
        ValueError: if ``depth`` is another, a size is not a positive integer, or the activation is another.
    """

    first_group = "layer_0"

    def __init__(
        self,
        depth: int,
        *,
        activation: str = "silu",
        num_classes: int = 10,
        in_channels: int = 3,
        normalize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, where="DMPreActResNet")
        if type(depth) is not int or depth not in _BLOCKS:
            raise ValueError(f"DMPreActResNet needs a depth of {' or '.join(map(str, _BLOCKS))}, got {depth!r}")
        self.activation = activation_of(activation, where="DMPreActResNet")
        self.num_classes, self.in_channels = num_classes, in_channels
        blocks = _BLOCKS[depth]
        self.normalize = first_layer(normalize, in_channels, where="DMPreActResNet")
        self.conv_2d = Conv3x3(in_channels, 64, stride=1)
        self.layer_0 = _group(blocks[0], 64, 64, stride=1, activation=self.activation)
        self.layer_1 = _group(blocks[1], 64, 128, stride=2, activation=self.activation)
        self.layer_2 = _group(blocks[2], 128, 256, stride=2, activation=self.activation)
        self.layer_3 = _group(blocks[3], 256, 512, stride=2, activation=self.activation)
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, num_classes) logits."""
        out = self.conv_2d(self.normalize(x))
        out = self.layer_3(self.layer_2(self.layer_1(self.layer_0(out))))
        out = self.activation(self.batchnorm(out))
        return self.logits(F.adaptive_avg_pool2d(out, 1).flatten(1))


_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def _group(blocks: int, in_planes: int, planes: int, *, stride: int, activation: Activation) -> nn.Sequential:
    rest = (_Block(planes, planes, stride=1, activation=activation) for _ in range(blocks - 1))
    return nn.Sequential(_Block(in_planes, planes, stride=stride, activation=activation), *rest)


class _Block(nn.Module):
    """Pre-activation basic block; where the shape changes, the shortcut is a convolution of the raw input."""

    def __init__(self, in_planes: int, planes: int, *, stride: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.batchnorm_0 = nn.BatchNorm2d(in_planes)
        self.conv_2d_1 = Conv3x3(in_planes, planes, stride=stride)
        self.batchnorm_1 = nn.BatchNorm2d(planes)
        self.conv_2d_2 = Conv3x3(planes, planes, stride=1)
        self.shortcut = Conv3x3(in_planes, planes, stride=stride) if in_planes != planes else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        out = self.conv_2d_1(self.activation(self.batchnorm_0(x)))
        return shortcut + self.conv_2d_2(self.activation(self.batchnorm_1(out)))
