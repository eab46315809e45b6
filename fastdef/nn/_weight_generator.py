"""The weight generator of AFA: how much a sample belongs to the clean branch."""

import torch
from torch import Tensor, nn


class WeightGenerator(nn.Module):
    """W0 = WG(features): two Conv-BN-ReLU, global average pool, Linear-ReLU, Linear, sigmoid (AFA, Eq. 1 and Fig. 5).

    The paper gives no widths: 3x3 convolutions and one width throughout are ours.

    Args:
        in_channels: channels of the features.
        hidden: width of the two convolutions and of the first linear layer.

    Raises:
        ValueError: if a size is not a positive integer.
    """

    def __init__(self, in_channels: int, *, hidden: int = 32) -> None:
        super().__init__()
        for name, size in {"in_channels": in_channels, "hidden": hidden}.items():
            if type(size) is not int or size < 1:
                raise ValueError(f"WeightGenerator needs {name} to be a positive integer, got {size!r}")
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) features -> (N,) W0 in [0, 1], float32 whatever the features are."""
        return torch.sigmoid(self.layers(features).float()).squeeze(1)
