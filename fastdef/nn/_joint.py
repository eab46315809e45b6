"""Batch norms that train on the statistics of all ranks together, for a model that trains on several."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastdef import distributed
from fastdef.nn._multi_bn import MultiBatchNorm2d
from fastdef.ops import joint_batch_norm

_State = tuple[Tensor, Tensor, Tensor]  # running mean, running variance, batches so far


@contextmanager
def joint_statistics(model: nn.Module) -> Iterator[None]:
    """Inside the ``with``, batch norms of ``model`` that train normalize by the statistics of all ranks' batches.

    Every segment of a K-branch batch norm has those of the same segment on all ranks, so W ranks with B / W images of
    each segment compute what one computes with B. The running statistics move likewise, and stay the same on all
    ranks. Weights, hooks and state dict stay what they are; with one rank nothing changes at all.

    Raises:
        ValueError: if a batch norm is neither a ``MultiBatchNorm2d`` nor a ``BatchNorm2d`` with running statistics;
            nothing changes then.
    """
    if distributed.world_size() == 1:
        yield
        return
    norms = [module for module in model.modules() if isinstance(module, (_BatchNorm, MultiBatchNorm2d))]
    former: dict[nn.Module, type[nn.Module]] = {module: type(module) for module in norms}
    for module, kind in former.items():
        if kind not in _JOINT or module.running_mean is None:
            raise ValueError(f"training on several processes needs BatchNorm2d with running statistics, got {module}")
    try:
        for module, kind in former.items():
            module.__class__ = _JOINT[kind]  # as torch's own fully_shard does: the module, its weights and hooks stay
        yield
    finally:
        for module, kind in former.items():
            module.__class__ = kind


class _JointBatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        like = x.new_ones(1, self.num_features, dtype=torch.promote_types(x.dtype, torch.float32))
        weight, bias = (like, like * 0) if self.weight is None else (self.weight[None], self.bias[None])
        out, mean, variance = joint_batch_norm(x, weight, bias, eps=self.eps)
        state = self.running_mean, self.running_var, self.num_batches_tracked
        _move(cast(_State, state), self.momentum, mean[0], variance[0])
        return out


class _JointMultiBatchNorm2d(MultiBatchNorm2d):
    def norm(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().norm(x)
        weight, bias = (torch.stack([value[k] for k in self.active]) for value in (self.weight, self.bias))
        out, means, variances = joint_batch_norm(x, weight, bias, eps=self.eps)
        for k, mean, variance in zip(self.active, means, variances, strict=True):
            state = self.running_mean[k], self.running_var[k], self.num_batches_tracked[k]
            _move(state, self.momentum, mean, variance)
        return out


_JOINT: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: _JointBatchNorm2d,
    MultiBatchNorm2d: _JointMultiBatchNorm2d,
}


@torch.no_grad()
def _move(state: _State, momentum: float | None, mean: Tensor, variance: Tensor) -> None:
    """Take a batch into the running statistics, as torch does: a moving average, or where it is None a plain one."""
    running_mean, running_var, batches = state
    batches += 1
    share = 1.0 / float(batches) if momentum is None else momentum
    running_mean.lerp_(mean.to(running_mean.dtype), share)
    running_var.lerp_(variance.to(running_var.dtype), share)
