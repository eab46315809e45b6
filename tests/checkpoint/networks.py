"""Code of one's own, as a caller of ``fastdef.load`` may name it."""

import torch
from torch import nn

from fastdef.nn import build, convert_to_multi_bn, parse_architecture

CALLS = []


class Shifted(nn.Module):
    """Holds what no state dict does."""

    def __init__(self, width, kernel):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, tuple(kernel)), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 3)
        self.shift = torch.tensor(0.25)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x):
        return self.fc(self.bn1(self.conv1(x * self.scale + self.shift)).relu().mean((2, 3)))


def small(width=4, kernel=(3, 3)):
    CALLS.append((width, kernel))
    return Shifted(width, kernel)


def wrapped():
    return build(parse_architecture("wrn-10-1", in_channels=1))


def lifted():
    return convert_to_multi_bn(Shifted(4, (3, 3)), 2)


def nothing():
    return 3


def broken():
    raise RuntimeError("no such\nthing")
