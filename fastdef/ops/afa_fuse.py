"""The dual batch norm of AFA as an operation: a kernel on CUDA, plain torch where a compiler or the CPU takes it."""

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fastdef.kernels import reference

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def afa_fuse(
    x: Tensor,
    w0: Tensor,
    scale0: Tensor,
    shift0: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    *,
    relu: bool = False,
) -> Tensor:
    """Dual batch norm in eval mode, W0 * BN_0(x) + (1 - W0) * BN_1(x), and a ReLU if asked (AFA, Eq. 2).

    BN_i(x) = x * scale_i + shift_i. A sample whose W0 is 1 or 0 gets exactly what BN_0 or BN_1 alone gives. Computed
    in fp32 (fp64 for fp64) and rounded once. On a GPU in eager mode it is one kernel forward and one backward; while
    torch.compile, torch.export or make_fx trace it, and on the CPU, it is plain torch, so that it fuses with its
    neighbours.

    Args:
        x: (N, C, H, W) features; float16, bfloat16, float32, or float64, which plain torch computes on every device.
            Contiguous and channels_last are read where they lie, and kept.
        w0: (N,) fusing weight, any float.
        scale0: (C,) float32, without a gradient; so are the next three.
        shift0: of BN_0.
        scale1: of BN_1.
        shift1: of BN_1.
        relu: whether a ReLU follows.

    Returns:
        (N, C, H, W), dtype of x, differentiable in ``x`` and ``w0``: once on a GPU in eager mode.

    Raises:
        ValueError: if a shape or dtype is another, or an affine requires a gradient.
    """
    _check(x, w0, {"scale0": scale0, "shift0": shift0, "scale1": scale1, "shift1": shift1})
    if x.is_cuda and x.dtype != torch.float64 and not torch.compiler.is_compiling() and get_proxy_mode() is None:
        return _afa_fuse(x, w0.float(), scale0, shift0, scale1, shift1, relu)
    return reference.afa_fuse(x, w0.to(reference.accumulator(x.dtype)), scale0, shift0, scale1, shift1, relu=relu)


@torch.library.custom_op("fastdef::afa_fuse", mutates_args=())
def _afa_fuse(
    x: Tensor, w0: Tensor, scale0: Tensor, shift0: Tensor, scale1: Tensor, shift1: Tensor, relu: bool
) -> Tensor:
    return reference.afa_fuse(_dense(x), w0, scale0, shift0, scale1, shift1, relu=relu)


@torch.library.custom_op("fastdef::afa_fuse_backward", mutates_args=())
def _afa_fuse_backward(
    grad: Tensor,
    x: Tensor,
    w0: Tensor,
    scale0: Tensor,
    shift0: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    return reference.afa_fuse_backward(_dense(grad, x), _dense(x), w0, scale0, shift0, scale1, shift1, relu=relu)


@_afa_fuse.register_kernel("cuda")
def _(x: Tensor, w0: Tensor, scale0: Tensor, shift0: Tensor, scale1: Tensor, shift1: Tensor, relu: bool) -> Tensor:
    from fastdef.kernels import afa_fuse as kernel  # triton is needed here and nowhere above

    with torch.cuda.device_of(x):  # triton launches on the current device, whatever holds its arguments
        return kernel.forward(_dense(x), *_vectors(w0, scale0, shift0, scale1, shift1), relu=relu)


@_afa_fuse_backward.register_kernel("cuda")
def _(
    grad: Tensor,
    x: Tensor,
    w0: Tensor,
    scale0: Tensor,
    shift0: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    from fastdef.kernels import afa_fuse as kernel

    with torch.cuda.device_of(x):
        return kernel.backward(_dense(grad, x), _dense(x), *_vectors(w0, scale0, shift0, scale1, shift1), relu=relu)


@_afa_fuse.register_fake
def _(x: Tensor, w0: Tensor, scale0: Tensor, shift0: Tensor, scale1: Tensor, shift1: Tensor, relu: bool) -> Tensor:
    return torch.empty_like(x, memory_format=_layout(x))


@_afa_fuse_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    w0: Tensor,
    scale0: Tensor,
    shift0: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=_layout(x)), torch.empty_like(w0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.relu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_afa_fuse_backward(grad, *ctx.saved_tensors, ctx.relu), None, None, None, None, None


_afa_fuse.register_autograd(_backward, setup_context=_setup)


def _layout(x: Tensor) -> torch.memory_format:
    """The layout results have: channels_last where the features lie so, else contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _dense(value: Tensor, like: Tensor | None = None) -> Tensor:
    """``value`` in the layout of the features; a copy only where it lies otherwise."""
    return value.contiguous(memory_format=_layout(value if like is None else like))


def _vectors(*values: Tensor) -> list[Tensor]:
    return [value.contiguous() for value in values]


def _check(x: Tensor, w0: Tensor, affines: dict[str, Tensor]) -> None:
    if x.ndim != 4 or x.numel() == 0 or x.dtype not in _FLOATS:
        raise ValueError(f"afa_fuse needs (N, C, H, W) float features, got {tuple(x.shape)} {x.dtype}")
    if w0.shape != x.shape[:1] or not w0.is_floating_point():
        raise ValueError(f"afa_fuse needs one float W0 a sample, ({x.shape[0]},), got {tuple(w0.shape)} {w0.dtype}")
    for name, value in affines.items():
        if value.shape != x.shape[1:2] or value.dtype != torch.float32:
            raise ValueError(
                f"afa_fuse needs {name} as ({x.shape[1]},) float32, got {tuple(value.shape)} {value.dtype}"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"afa_fuse differentiates in x and w0 alone, got {name} that requires a gradient")
