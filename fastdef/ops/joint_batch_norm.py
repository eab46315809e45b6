"""Batch norm of segments by the statistics of all ranks together.

x is (S, B, C, H, V) on each of W ranks: n = W * B * H * V values a segment and channel. With the mean and the sum of
squared deviations M of each rank, and those of all together by Chan's formula (Chan et al., 1979):

    mean = sum mean_r / W       M = sum M_r + (n / W) * sum (mean_r - mean)^2       v = M / n
    out = (x - mean) / sqrt(v + eps) * weight + bias
    dx = weight / sqrt(v + eps) * (dout - sum dout / n - xhat * sum(dout * xhat) / n),    both sums over all ranks

One message each way, of 2 * S * C numbers a rank, whatever the batch. The gradients of weight and bias are of this
rank's images alone, as those of every other weight are before they are averaged.
"""

from typing import Any

import torch
from torch import Tensor

from fastdef import distributed

_OVER = (1, 3, 4)  # of (S, B, C, H, W)


def joint_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each segment by its mean and variance over the batches of all ranks; every rank has to call it.

    Args:
        x: (S * B, C, H, W) images of this rank, of S segments; the same shape on every rank.
        weight: (S, C), a row for each segment.
        bias: likewise.
        eps: added to the variance.

    Returns:
        Like x, differentiable once in x, weight and bias; and the (S, C) mean and unbiased variance, in float32 for
        half precision, without a gradient, for the running statistics.

    Raises:
        ValueError: if x is not (S * B, C, H, W) for the S and C of the weight, or there is one value a channel.
    """
    if x.ndim != 4 or weight.ndim != 2 or x.shape[0] % weight.shape[0] or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"joint_batch_norm needs (S * B, C, H, W) and (S, C), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if x[:, 0].numel() * distributed.world_size() <= weight.shape[0]:
        raise ValueError(f"joint_batch_norm needs more than one value a channel in training, got {tuple(x.shape)}")
    out, mean, variance, _ = _joint_batch_norm(x, weight, bias, eps)
    return out, mean, variance


@torch.library.custom_op("fastdef::joint_batch_norm", mutates_args=())
def _joint_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = _wide(x, len(weight))
    variance, mean = torch.var_mean(wide, _OVER, correction=0)
    means, variances = distributed.all_gather(torch.stack((mean, variance))).unbind(1)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    rate = torch.rsqrt(variance + eps)
    out = (wide - _column(mean)).mul_(_column(rate * weight)).add_(_column(bias))
    n = distributed.world_size() * x[:, 0].numel() // len(weight)
    return out.flatten(0, 1).to(x.dtype), mean, variance * (n / (n - 1)), rate


@torch.library.custom_op("fastdef::joint_batch_norm_backward", mutates_args=())
def _joint_batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    normed = (_wide(x, len(weight)) - _column(mean)).mul_(_column(rate))
    wide = _wide(grad, len(weight))
    dbias, dweight = wide.sum(_OVER), (wide * normed).sum(_OVER)
    n = distributed.world_size() * x[:, 0].numel() // len(weight)
    shift, slope = distributed.all_reduce(torch.stack((dbias, dweight))) / n
    dx = normed.mul_(_column(-slope)).add_(wide).sub_(_column(shift)).mul_(_column(rate * weight))
    return dx.flatten(0, 1).to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


@_joint_batch_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = [weight.new_empty(weight.shape, dtype=_statistics_dtype(x)) for _ in range(3)]
    return torch.empty_like(x), statistics[0], statistics[1], statistics[2]


@_joint_batch_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _ = inputs
    _, mean, variance, rate = output
    ctx.mark_non_differentiable(mean, variance, rate)
    ctx.save_for_backward(x, weight, mean, rate)


def _differentiate(ctx: Any, grad: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_joint_batch_norm_backward(grad, *ctx.saved_tensors), None


_joint_batch_norm.register_autograd(_differentiate, setup_context=_keep)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(x: Tensor, segments: int) -> Tensor:
    """(S, B, C, H, W), half precisions as float32."""
    return x.unflatten(0, (segments, -1)).to(_statistics_dtype(x))


def _column(value: Tensor) -> Tensor:
    """(S, C) -> (S, 1, C, 1, 1)."""
    return value[:, None, :, None, None]
