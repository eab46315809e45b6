"""The dual batch norm of AFA as an operation: a kernel on CUDA, plain torch where a compiler or the CPU takes it."""

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fastdef.kernels import reference
from fastdef.kernels.reference import Norm

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def afa_fuse(x: Tensor, w0: Tensor, norm0: Norm, norm1: Norm, *, relu: bool = False) -> Tensor:
    """Dual batch norm in eval mode, W0 * BN_0(x) + (1 - W0) * BN_1(x), and a ReLU if asked (AFA, Eq. 2).

    BN_i(x) = (x - mean_i) / sqrt(var_i + eps_i) * weight_i + bias_i. A sample whose W0 is 1 or 0 gets exactly what BN_0
    or BN_1 alone gives. Computed in fp32 (fp64 for fp64) and rounded once. On a GPU in eager mode it is one kernel
    forward and one backward; while torch.compile, torch.export or make_fx trace it, and on the CPU, it is plain torch,
    so that it fuses with its neighbours.

    Args:
        x: (N, C, H, W) features; float16, bfloat16, float32, or float64, which plain torch computes on every device.
            Contiguous and channels_last are read where they lie, and kept.
        w0: (N,) fusing weight, any float.
        norm0: BN_0, ``Norm.of`` a batch norm; without a gradient.
        norm1: BN_1, likewise.
        relu: whether a ReLU follows.

    Returns:
        (N, C, H, W), dtype of x, differentiable in ``x`` and ``w0``: once on a GPU in eager mode.

    Raises:
        ValueError: if a shape or dtype is another, or a batch norm requires a gradient.
    """
    _check(x, w0, norm0, norm1)
    if x.is_cuda and x.dtype != torch.float64 and not torch.compiler.is_compiling() and get_proxy_mode() is None:
        return _afa_fuse(x, w0.float(), *norm0[:4], *norm1[:4], norm0.eps, norm1.eps, relu)
    return reference.afa_fuse(x, w0.to(reference.accumulator(x.dtype)), norm0, norm1, relu=relu)


_NORMS = (
    "Tensor mean0, Tensor var0, Tensor weight0, Tensor bias0, "
    "Tensor mean1, Tensor var1, Tensor weight1, Tensor bias1, float eps0, float eps1"
)


@torch.library.custom_op(
    "fastdef::afa_fuse", mutates_args=(), schema=f"(Tensor x, Tensor w0, {_NORMS}, bool relu) -> Tensor"
)
def _afa_fuse(x: Tensor, w0: Tensor, *rest: Any) -> Tensor:
    return reference.afa_fuse(_dense(x), w0, *_norms(rest), relu=rest[-1])


@torch.library.custom_op(
    "fastdef::afa_fuse_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor w0, {_NORMS}, bool relu) -> (Tensor, Tensor)",
)
def _afa_fuse_backward(grad: Tensor, x: Tensor, w0: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return reference.afa_fuse_backward(_dense(grad, x), _dense(x), w0, *_norms(rest), relu=rest[-1])


@_afa_fuse.register_kernel("cuda")
def _(x: Tensor, w0: Tensor, *rest: Any) -> Tensor:
    from fastdef.kernels import afa_fuse as kernel  # triton is needed here and nowhere above

    with torch.cuda.device_of(x):  # triton launches on the current device, whatever holds its arguments
        return kernel.forward(_dense(x), w0.contiguous(), *_norms(rest), relu=rest[-1])


@_afa_fuse_backward.register_kernel("cuda")
def _(grad: Tensor, x: Tensor, w0: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    from fastdef.kernels import afa_fuse as kernel

    with torch.cuda.device_of(x):
        return kernel.backward(_dense(grad, x), _dense(x), w0.contiguous(), *_norms(rest), relu=rest[-1])


@_afa_fuse.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x))


@_afa_fuse_backward.register_fake
def _(grad: Tensor, x: Tensor, w0: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=_layout(x)), torch.empty_like(w0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, eps0, eps1, relu = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = eps0, eps1, relu


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_afa_fuse_backward(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 11


_afa_fuse.register_autograd(_backward, setup_context=_setup)


def _norms(rest: tuple[Any, ...]) -> tuple[Norm, Norm]:
    """Of the operations' arguments in the order of ``_NORMS``."""
    vectors = [value.contiguous() for value in rest[:8]]
    return Norm._make([*vectors[:4], rest[8]]), Norm._make([*vectors[4:], rest[9]])


def _layout(x: Tensor) -> torch.memory_format:
    """The layout results have: channels_last where the features lie so, else contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _dense(value: Tensor, like: Tensor | None = None) -> Tensor:
    """``value`` in the layout of the features; a copy only where it lies otherwise."""
    return value.contiguous(memory_format=_layout(value if like is None else like))


def _check(x: Tensor, w0: Tensor, norm0: Norm, norm1: Norm) -> None:
    if x.ndim != 4 or x.numel() == 0 or x.dtype not in _FLOATS:
        raise ValueError(f"afa_fuse needs (N, C, H, W) float features, got {tuple(x.shape)} {x.dtype}")
    if w0.shape != x.shape[:1] or not w0.is_floating_point():
        raise ValueError(f"afa_fuse needs one float W0 a sample, ({x.shape[0]},), got {tuple(w0.shape)} {w0.dtype}")
    for which, norm in (("norm0", norm0), ("norm1", norm1)):
        for name, value in zip(Norm._fields[:4], norm[:4], strict=True):
            if value.shape != x.shape[1:2] or not value.is_floating_point():
                raise ValueError(
                    f"afa_fuse needs {which}.{name} as ({x.shape[1]},) floats, got {tuple(value.shape)} {value.dtype}"
                )
            if value.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    f"afa_fuse differentiates in x and w0 alone, got a {which}.{name} that requires a gradient"
                )
