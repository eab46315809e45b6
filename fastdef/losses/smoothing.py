"""The feature smoothing term of training (paper 003, Eqs. 2-3)."""

import torch
from torch import Tensor

from fastdef.ops import smoothing_loss


def smoothing_penalty(features: Tensor, *, delta: float = 0.02) -> tuple[Tensor, Tensor]:
    """max(L_F, delta) averaged over the batch, to be added to the cross-entropy.

    Args:
        features: (N, ...) output of the smoothed layer.
        delta: below it, and at it, a sample's features are left alone: no gradient.

    Returns:
        The () penalty, and the (N,) losses L_F without their gradient, to be logged.
    """
    loss = smoothing_loss(features)
    return torch.where(loss > delta, loss, delta).mean(), loss.detach()


def smoothness(features: Tensor) -> Tensor:
    """L_F / std(F) of each sample, (N,): smoothness that shrinking F does not change.

    Batch norm follows the smoothed layer, so a network may lower L_F by scale alone; this tells whether it did. 0.80
    for normally distributed values, 1 for two values evenly mixed, less where few values stand out.
    """
    return smoothing_loss(features) / features.flatten(1).float().std(dim=1, correction=0).clamp_min(1e-12)
