"""Every operation in plain torch: the path on the CPU, the oracle of the kernels, and what exporters decompose to.

Each function has its launcher's signature and is the paper's line. None is tuned.
"""

import torch
from torch import Tensor


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
