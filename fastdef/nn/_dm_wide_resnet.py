"""Wide residual network as DeepMind's robust models have it, named so that their weights load."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdef.nn._dm_layers import Activation, Conv3x3, activation_of
from fastdef.nn._normalize import first_layer
from fastdef.nn._sizes import check_depth, check_sizes


class DMWideResNet(nn.Module):
    """WRN-depth-width of Gowal et al. (2020), which most of RobustBench's best CIFAR models are.

    Unlike ``WideResNet`` it activates by SiLU, and a convolution of stride 2 pads right and below alone. The groups
    ``layer.0``, ``layer.1``, ``layer.2`` have 16, 32 and 64 times ``width`` channels at the input's resolution, a
    half and a quarter of it. Each outputs the raw sum of its last residual block.

    Args:
        depth: 6n + 4, for n blocks a group.
        width: multiplier of the channels.
        activation: "silu" or "relu".
        num_classes: number of logits.
        in_channels: channels of the images.
        normalize: module that runs first, on images in [0, 1]; None for none.

    Raises:
        ValueError: if ``depth`` is not 6n + 4, a size is not a positive integer, or the activation is another.
    """

    first_group = "layer.0"

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        activation: str = "silu",
        num_classes: int = 10,
        in_channels: int = 3,
        normalize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_classes=num_classes, in_channels=in_channels, where="DMWideResNet")
        blocks = (check_depth(depth, where="DMWideResNet") - 4) // 6
        self.activation = activation_of(activation, where="DMWideResNet")
        self.depth, self.width, self.num_classes, self.in_channels = depth, width, num_classes, in_channels
        self.normalize = first_layer(normalize, in_channels, where="DMWideResNet")
        self.init_conv = Conv3x3(in_channels, 16, stride=1)
        self.layer = nn.Sequential(
            _Group(blocks, 16, 16 * width, stride=1, activation=self.activation),
            _Group(blocks, 16 * width, 32 * width, stride=2, activation=self.activation),
            _Group(blocks, 32 * width, 64 * width, stride=2, activation=self.activation),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, num_classes) logits."""
        out = self.layer(self.init_conv(self.normalize(x)))
        out = self.activation(self.batchnorm(out))
        return self.logits(F.adaptive_avg_pool2d(out, 1).flatten(1))


class _Group(nn.Module):
    """``blocks`` residual blocks, of which the first changes channels and resolution."""

    def __init__(self, blocks: int, in_planes: int, planes: int, *, stride: int, activation: Activation) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _Block(in_planes, planes, stride=stride, activation=activation),
            *(_Block(planes, planes, stride=1, activation=activation) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Block(nn.Module):
    """Pre-activation basic block; where the channels change, the shortcut starts after the first activation."""

    def __init__(self, in_planes: int, planes: int, *, stride: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.batchnorm_0 = nn.BatchNorm2d(in_planes)
        self.conv_0 = Conv3x3(in_planes, planes, stride=stride)
        self.batchnorm_1 = nn.BatchNorm2d(planes)
        self.conv_1 = Conv3x3(planes, planes, stride=1)
        self.shortcut = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False) if in_planes != planes else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.batchnorm_0(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return shortcut + self.conv_1(self.activation(self.batchnorm_1(self.conv_0(out))))
