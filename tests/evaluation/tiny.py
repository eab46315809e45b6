"""Classifiers that take no time, one of which answers what can be told in the head, and images for it."""

import torch
from torch import nn

from fastdef.data import Dataset


class Brighter(nn.Module):
    """Class 0 where the mean pixel is above a half, else class 1.

    Args:
        scale: of the logits; at 0 there is no gradient, and every answer is class 0.
    """

    def __init__(self, scale=10.0):
        super().__init__()
        self.block1 = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.block1.weight, scale)
        nn.init.constant_(self.block1.bias, -scale / 2)

    def forward(self, x):
        above = self.block1(x).mean((1, 2, 3))
        return torch.stack([above, -above], 1)


class Fickle(Brighter):
    """The opposite in training."""

    def forward(self, x):
        return super().forward(x) * (-1 if self.training else 1)


class Wavy(Brighter):
    """Class 0 and 1 by turns as the pixels get brighter: where an attack begins tells where it ends."""

    def forward(self, x):
        above = (12 * self.block1(x)).sin().mean((1, 2, 3))
        return torch.stack([above, -above], 1)


class Small(nn.Module):
    """Four classes, two batch norms, random weights; of 6x6 gray images."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def images(*levels):
    """One of each brightness."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 3, 3).clone()


def dataset(*levels, labels=None, classes=("bright", "dark")):
    """One image of each brightness, all of class 0 if nothing else is said."""
    pixels = (255 * images(*levels)).to(torch.uint8)
    return Dataset(pixels, torch.tensor(labels or [0] * len(levels)), classes, "made", "test")
