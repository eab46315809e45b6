"""Every operation in plain torch: the path on the CPU, the oracle of the kernels, and what exporters decompose to.

Each function has its launcher's signature and is the paper's line. None is tuned.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


def smoothing(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Feature smoothing loss of each sample (Active Defense, Eq. 3).

    Args:
        f: (N, ...) features, any float.

    Returns:
        loss = mean |F - m|, m = mean(F), and tilt = mean(sign(F - m)), each (N,) in fp32 (fp64 for fp64).
    """
    rest = tuple(range(1, f.ndim))
    f = f.to(accumulator(f.dtype))
    mean = f.mean(rest)
    centred = f - _column(mean, f)
    return centred.abs().mean(rest), mean, centred.sign().mean(rest)


def smoothing_backward(grad: Tensor, f: Tensor, mean: Tensor, tilt: Tensor) -> Tensor:
    """dL_F/dF = (sign(F - m) - mean(sign(F - m))) / M, times the (N,) incoming gradient, in the features' dtype."""
    field = _field(f, mean, tilt)
    return (field * _column(grad / f[0].numel(), f)).to(f.dtype)


def smoothing_field(f: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the unscaled field sign(F - m) - mean(sign(F - m)) in the features' dtype."""
    loss, mean, tilt = smoothing(f)
    return loss, _field(f, mean, tilt).to(f.dtype)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums over features of ``dtype`` are kept in: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _field(f: Tensor, mean: Tensor, tilt: Tensor) -> Tensor:
    return (f.to(mean.dtype) - _column(mean, f)).sign() - _column(tilt, f)


def _column(value: Tensor, f: Tensor) -> Tensor:
    """(N,) values that broadcast to the features; by unsqueeze, since a view would write N into a traced graph."""
    for _ in f.shape[1:]:
        value = value.unsqueeze(-1)
    return value


class Norm(NamedTuple):
    """A batch norm in eval mode, BN(x) = (x - mean) / sqrt(var + eps) * weight + bias; its vectors are (C,), any float.

    Attributes:
        mean: the running one.
        var: the running one.
        weight: of the affine.
        bias: of the affine.
        eps: what the variance is raised by.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> "Norm":
        """What the module holds.

        Raises:
            ValueError: if it has no affine or no running statistics.
        """
        mean, var, weight, bias = module.running_mean, module.running_var, module.weight, module.bias
        if mean is None or var is None or weight is None or bias is None:
            raise ValueError(f"a Norm needs a batch norm with affine and running statistics, got {module}")
        return cls(mean, var, weight, bias, module.eps)


def afa_fuse(x: Tensor, w0: Tensor, norm0: Norm, norm1: Norm, *, relu: bool) -> Tensor:
    """Dual batch norm in eval mode, W0 * BN_0(x) + (1 - W0) * BN_1(x), as one affine a sample and channel (AFA, Eq. 2).

    Args:
        x: (N, C, H, W) features, any float.
        w0: (N,) fusing weight.
        norm0: BN_0.
        norm1: BN_1.
        relu: whether a ReLU follows.

    Returns:
        Like x.
    """
    wide = x.to(accumulator(x.dtype))
    (scale0, shift0), (scale1, shift1) = _affine(norm0, wide.dtype), _affine(norm1, wide.dtype)
    out = torch.addcmul(_blend(w0, shift0, shift1), wide, _blend(w0, scale0, scale1))
    return (out.relu() if relu else out).to(x.dtype)


def afa_fuse_backward(
    grad: Tensor, x: Tensor, w0: Tensor, norm0: Norm, norm1: Norm, *, relu: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of ``afa_fuse``: dx like x, and dW0, each sample's sum of grad * (BN_0(x) - BN_1(x)), fp32 or fp64."""
    wide, grad = x.to(accumulator(x.dtype)), grad.to(accumulator(x.dtype))
    (scale0, shift0), (scale1, shift1) = _affine(norm0, wide.dtype), _affine(norm1, wide.dtype)
    scale, shift = _blend(w0, scale0, scale1), _blend(w0, shift0, shift1)
    if relu:
        grad = torch.where(torch.addcmul(shift, wide, scale) > 0, grad, 0.0)
    difference = torch.addcmul(_plane(shift0 - shift1), wide, _plane(scale0 - scale1))
    return (grad * scale).to(x.dtype), (grad * difference).sum((1, 2, 3))


def _affine(norm: Norm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(C,) scale and shift, with BN(x) = x * scale + shift."""
    mean, var, weight, bias = (value.to(dtype) for value in norm[:4])
    scale = weight * torch.rsqrt(var + norm.eps)
    return scale, bias - mean * scale


def _blend(w0: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(N, C, 1, 1); in the form that is exactly one of the two where W0 is 1 or 0."""
    w0 = w0[:, None]
    return _plane(w0 * first + (1.0 - w0) * second)


def _plane(value: Tensor) -> Tensor:
    return value[..., None, None]
