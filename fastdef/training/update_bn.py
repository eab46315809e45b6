"""Running statistics of batch norms, estimated anew for the weights as they are."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def update_bn(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every batch norm's running statistics to their mean over ``batches``, and the model to eval mode.

    Averaged weights have none of their own. And a moving average lags behind weights that still change fast: smoothed
    features may have channels that vary less than their mean drifts, and the batch norm after them is then far off
    (seen: 36 % where fresh statistics gave 89 %).

    Args:
        model: any; only its running statistics are changed.
        batches: (N, C, H, W) images; at least one batch.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms if norm.num_batches_tracked is not None]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    model.train()
    for images in batches:
        model(images)
    for norm, (momentum, count) in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked = count
    model.eval()
