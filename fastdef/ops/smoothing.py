"""The feature smoothing loss as an operation: the dispatcher picks the kernel or the reference by device."""

import torch
from torch import Tensor

from fastdef.kernels import reference

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def smoothing_loss(features: Tensor) -> Tensor:
    """Feature smoothing loss of each sample: mean |F - mean F| (Active Defense, Eq. 3).

    Args:
        features: (N, ...) features; float16, bfloat16, float32, or float64, which plain torch computes on every
            device. Samples that lie one after another in memory, each of them dense, are read where they lie, whatever
            the order inside a sample (channels_last, for one); any other layout is copied first.

    Returns:
        (N,) float32 losses (float64 for float64), differentiable once in ``features``, with
        dL_F/dF = (sign(F - m) - mean(sign(F - m))) / M and sign(0) = 0.

    Raises:
        ValueError: if ``features`` is not a float tensor of shape (N, ...) with at least one sample and feature.
    """
    _check(features, where="smoothing_loss")
    loss, _, _ = _smoothing(features)
    return loss


def smoothing_loss_and_field(features: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the unscaled gradient field sign(F - m) - mean(sign(F - m)), in one call, for the defense loop.

    dL_F/dF is the field over M, the number of features of a sample. Not differentiable: ``features`` must not require
    a gradient, or be under ``torch.no_grad()``.

    Args:
        features: as for :func:`smoothing_loss`.

    Returns:
        (N,) float32 losses (float64 for float64), and the field with shape and dtype of ``features``; with their
        layout too where that is read as it lies, else contiguous.

    Raises:
        ValueError: as :func:`smoothing_loss`, and where a gradient would be lost.
    """
    _check(features, where="smoothing_loss_and_field")
    if features.requires_grad and torch.is_grad_enabled():
        raise ValueError("smoothing_loss_and_field needs features without a gradient, got some that require one")
    return _smoothing_field(features)


@torch.library.custom_op("fastdef::smoothing", mutates_args=())
def _smoothing(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return reference.smoothing(f)


@torch.library.custom_op("fastdef::smoothing_backward", mutates_args=())
def _smoothing_backward(grad: Tensor, f: Tensor, mean: Tensor, tilt: Tensor) -> Tensor:
    return _backward_in_torch(grad, f, mean, tilt)


@torch.library.custom_op("fastdef::smoothing_field", mutates_args=())
def _smoothing_field(f: Tensor) -> tuple[Tensor, Tensor]:
    return _field_in_torch(f)


@_smoothing.register_kernel("cuda")
def _smoothing_on_gpu(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if f.dtype == torch.float64:  # the kernels keep fp32 sums
        return reference.smoothing(f)
    from fastdef.kernels import smoothing  # triton is needed here and nowhere above

    with torch.cuda.device_of(f):  # triton launches on the current device, whatever holds its arguments
        return smoothing.forward(_flat(f))


@_smoothing_backward.register_kernel("cuda")
def _backward_on_gpu(grad: Tensor, f: Tensor, mean: Tensor, tilt: Tensor) -> Tensor:
    if f.dtype == torch.float64:
        return _backward_in_torch(grad, f, mean, tilt)
    from fastdef.kernels import smoothing

    with torch.cuda.device_of(f):
        return _unflat(smoothing.backward(grad, _flat(f), mean, tilt), f)


@_smoothing_field.register_kernel("cuda")
def _field_on_gpu(f: Tensor) -> tuple[Tensor, Tensor]:
    if f.dtype == torch.float64:
        return _field_in_torch(f)
    from fastdef.kernels import smoothing

    with torch.cuda.device_of(f):
        loss, field = smoothing.forward_with_field(_flat(f))
        return loss, _unflat(field, f)


@_smoothing.register_fake
def _(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _per_sample(f), _per_sample(f), _per_sample(f)


@_smoothing_backward.register_fake
def _(grad: Tensor, f: Tensor, mean: Tensor, tilt: Tensor) -> Tensor:
    return _like(f)


@_smoothing_field.register_fake
def _(f: Tensor) -> tuple[Tensor, Tensor]:
    return _per_sample(f), _like(f)


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
    (f,) = inputs
    _, mean, tilt = output
    ctx.save_for_backward(f, mean, tilt)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _mean: Tensor, _tilt: Tensor) -> Tensor:
    f, mean, tilt = ctx.saved_tensors  # type: ignore[attr-defined]
    return _smoothing_backward(grad.contiguous(), f, mean, tilt)


_smoothing.register_autograd(_backward, setup_context=_setup)


def _backward_in_torch(grad: Tensor, f: Tensor, mean: Tensor, tilt: Tensor) -> Tensor:
    return _as_lies(reference.smoothing_backward(grad, f, mean, tilt), f)


def _field_in_torch(f: Tensor) -> tuple[Tensor, Tensor]:
    loss, field = reference.smoothing_field(f)
    return loss, _as_lies(field, f)


def _order(f: Tensor) -> list[int]:
    """Dimensions from the slowest in memory to the fastest where the samples are dense, else as they are numbered."""
    numbered = list(range(f.ndim))
    if f.is_contiguous():
        return numbered
    order = [0, *sorted(numbered[1:], key=lambda dim: f.stride(dim), reverse=True)]
    return order if f.permute(order).is_contiguous() else numbered


def _flat(f: Tensor) -> Tensor:
    """(N, M) view of the samples as they lie in memory; a copy only where they are not dense."""
    return f.permute(_order(f)).contiguous().flatten(1)


def _unflat(flat: Tensor, f: Tensor) -> Tensor:
    """(N, M) values in the memory order of ``_flat(f)`` -> the shape of ``f``."""
    order = _order(f)
    return flat.view([f.shape[dim] for dim in order]).permute(_inverse(order))


def _per_sample(f: Tensor) -> Tensor:
    return f.new_empty(f.shape[0], dtype=reference.accumulator(f.dtype))  # not len(f), which would be a constant


def _like(f: Tensor) -> Tensor:
    order = _order(f)
    return f.new_empty([f.shape[dim] for dim in order]).permute(_inverse(order))


def _as_lies(value: Tensor, f: Tensor) -> Tensor:
    order = _order(f)
    return value.permute(order).contiguous().permute(_inverse(order))


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def _check(features: Tensor, *, where: str) -> None:
    if features.ndim < 2 or features.numel() == 0:
        raise ValueError(f"{where} needs (N, ...) features, got shape {tuple(features.shape)}")
    if features.dtype not in _FLOATS:
        raise ValueError(f"{where} needs features of a float dtype, got {features.dtype}")
