"""Wide residual network, defined and named as in TRADES and RobustBench, so that their weights load."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fastdef.nn._normalize import first_layer
from fastdef.nn._sizes import check_depth, check_sizes


class WideResNet(nn.Module):
    """WRN-depth-width of pre-activation basic blocks (Zagoruyko and Komodakis 2016).

    The groups ``block1``, ``block2``, ``block3`` have 16, 32 and 64 times ``width`` channels at the input's
    resolution, a half and a quarter of it. Each outputs the raw sum of its last residual block, before any batch
    norm or ReLU: paper 003's feature map F is ``block1``'s output (l = 0). The following group normalizes it.

    Args:
        depth: 6n + 4, for n blocks a group.
        width: multiplier of the channels.
        num_classes: number of logits.
        in_channels: channels of the images.
        normalize: module that runs first, on images in [0, 1]; None for none.

    Raises:
        ValueError: if ``depth`` is not 6n + 4, or a size is not a positive integer.
    """

    first_group = "block1"

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        normalize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_classes=num_classes, in_channels=in_channels, where="WideResNet")
        self.depth, self.width, self.num_classes, self.in_channels = depth, width, num_classes, in_channels
        blocks = (check_depth(depth, where="WideResNet") - 4) // 6
        self.normalize = first_layer(normalize, in_channels, where="WideResNet")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _Group(blocks, 16, 16 * width, stride=1)
        self.block2 = _Group(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = _Group(blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """As TRADES does: He normal by fan-out for convolutions, zero for the classifier's bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, num_classes) logits."""
        out = self.conv1(self.normalize(x))
        out = self.block3(self.block2(self.block1(out)))
        out = F.relu(self.bn1(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class _Group(nn.Module):
    """``blocks`` residual blocks, of which the first changes channels and resolution."""

    def __init__(self, blocks: int, in_planes: int, out_planes: int, *, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            _Block(in_planes, out_planes, stride=stride),
            *(_Block(out_planes, out_planes, stride=1) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class _Block(nn.Module):
    """Pre-activation basic block; where the shape changes, the shortcut starts after the first activation."""

    def __init__(self, in_planes: int, out_planes: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, out_planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_planes)
        self.conv2 = nn.Conv2d(out_planes, out_planes, 3, padding=1, bias=False)
        # A None child keeps the name out of the state dict, as in TRADES.
        self.convShortcut = (
            nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False) if in_planes != out_planes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(out))))
