"""PreActResNet-18 in its CIFAR form, with the keys of the usual public adversarial training code."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastdef.nn._normalize import first_layer
from fastdef.nn._sizes import check_sizes


class PreActResNet18(nn.Module):
    """Pre-activation residual network of 18 layers (He et al. 2016b), with a batch norm before the classifier.

    The groups ``layer1`` ... ``layer4`` have 64, 128, 256 and 512 channels at the input's resolution, a half, a
    quarter and an eighth of it. Each outputs the raw sum of its last residual block, before any batch norm or ReLU.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        normalize: module that runs first, on images in [0, 1]; None for none.

    Raises:
        ValueError: if a size is not a positive integer.
    """

    first_group = "layer1"

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, normalize: nn.Module | None = None) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, where="PreActResNet18")
        self.num_classes, self.in_channels = num_classes, in_channels
        self.normalize = first_layer(normalize, in_channels, where="PreActResNet18")
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(_Block(64, 64, stride=1), _Block(64, 64, stride=1))
        self.layer2 = nn.Sequential(_Block(64, 128, stride=2), _Block(128, 128, stride=1))
        self.layer3 = nn.Sequential(_Block(128, 256, stride=2), _Block(256, 256, stride=1))
        self.layer4 = nn.Sequential(_Block(256, 512, stride=2), _Block(512, 512, stride=1))
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, num_classes) logits."""
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = F.relu(self.bn(out))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


class _Block(nn.Module):
    """Pre-activation basic block; where the shape changes, the shortcut starts after the first activation."""

    def __init__(self, in_planes: int, planes: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False))
            if stride != 1 or in_planes != planes
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(out))))
