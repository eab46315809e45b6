"""ResNet-18, -34 and -50 in their CIFAR form: a 3x3 stem, no max pooling; the keys of the usual public code."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdef.nn._normalize import first_layer
from fastdef.nn._sizes import check_sizes


class ResNet(nn.Module):
    """Residual network (He et al. 2016) for small images, as MART and most adversarial training code define it.

    The groups ``layer1`` ... ``layer4`` have 1, 2, 4 and 8 times ``width`` channels (four times that at depth 50) at
    the input's resolution, a half, a quarter and an eighth of it. Each outputs the residual sum *after* its last ReLU:
    not negative, unlike the groups of ``WideResNet`` and ``PreActResNet18``, whose output is the raw sum.

    Args:
        depth: 18, 34 or 50.
        width: channels of the stem; 64 in the usual code.
        num_classes: number of logits.
        in_channels: channels of the images.
        normalize: module that runs first, on images in [0, 1]; None for none.

    Raises:
        ValueError: if ``depth`` is another, or a size is not a positive integer.
    """

    first_group = "layer1"

    def __init__(
        self,
        depth: int,
        *,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        normalize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_classes=num_classes, in_channels=in_channels, where="ResNet")
        if type(depth) is not int or depth not in _DEPTHS:
            raise ValueError(f"ResNet needs a depth of {', '.join(map(str, _DEPTHS))}, got {depth!r}")
        self.depth, self.width, self.num_classes, self.in_channels = depth, width, num_classes, in_channels
        block, blocks = _DEPTHS[depth]
        wide = width * block.expansion
        self.normalize = first_layer(normalize, in_channels, where="ResNet")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _group(block, blocks[0], width, width, stride=1)
        self.layer2 = _group(block, blocks[1], wide, 2 * width, stride=2)
        self.layer3 = _group(block, blocks[2], 2 * wide, 4 * width, stride=2)
        self.layer4 = _group(block, blocks[3], 4 * wide, 8 * width, stride=2)
        self.linear = nn.Linear(8 * wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, num_classes) logits."""
        out = F.relu(self.bn1(self.conv1(self.normalize(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _shortcut(in_planes: int, out_planes: int, *, stride: int) -> nn.Sequential:
    """Empty, so the identity, where the shape does not change."""
    if stride == 1 and in_planes == out_planes:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False), nn.BatchNorm2d(out_planes))


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, in_planes: int, planes: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(in_planes, planes, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_planes: int, planes: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.shortcut = _shortcut(in_planes, 4 * planes, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


_Block = type[_Basic] | type[_Bottleneck]

_DEPTHS: dict[int, tuple[_Block, tuple[int, int, int, int]]] = {
    18: (_Basic, (2, 2, 2, 2)),
    34: (_Basic, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
}


def _group(block: _Block, blocks: int, in_planes: int, planes: int, *, stride: int) -> nn.Sequential:
    rest = (block(planes * block.expansion, planes, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(block(in_planes, planes, stride=stride), *rest)
