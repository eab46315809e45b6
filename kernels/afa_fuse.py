"""Dual batch norm in eval mode, out = W0 * BN_0(x) + (1 - W0) * BN_1(x), and its gradient (AFA, Eq. 2).

Each BN_i is an affine of a channel, and so is a sample's blend of the two:

    scale_i = weight_i / sqrt(var_i + eps_i)         shift_i = bias_i - mean_i * scale_i
    scale = W0 * scale_0 + (1 - W0) * scale_1        shift likewise        exact where W0 is 1 or 0

A sample is a dense (A, B) matrix: channels by pixels in the contiguous layout, pixels by channels in channels_last.
A program takes one tile of it, folds and blends the batch norms of the tile's channels, and goes over the tile once.

    _forward    reads x          writes out
    _backward   reads x, grad    writes dx, and the tile's part of dW0 = sum of grad * (BN_0(x) - BN_1(x))

The parts are added afterwards in fixed order: no atomics, the same bits every time. The ReLU's mask is computed again
from x, so nothing but the inputs is kept for the backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdef.kernels import configurations
from fastdef.kernels.reference import Norm


@triton.jit
def _forward_kernel(
    x_ptr,  # (N, A, B) any float
    w0_ptr,  # (N,) fp32
    mean0_ptr,  # (C,) any float, C is B where CHANNELS_LAST, else A; so are the other seven
    var0_ptr,
    weight0_ptr,
    bias0_ptr,
    eps0,
    mean1_ptr,
    var1_ptr,
    weight1_ptr,
    bias1_ptr,
    eps1,
    out_ptr,  # (N, A, B) dtype of x, out
    A,
    B,
    CHANNELS_LAST: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    sample, a, b = _tile(A, B, BLOCK_A, BLOCK_B)
    inside = (a < A) & (b < B)
    index = a * B + b  # within the sample, which starts at a 64-bit offset
    start = sample * A * B
    x = tl.load(x_ptr + start + index, mask=inside, other=0.0).to(tl.float32)
    w0 = tl.load(w0_ptr + sample)
    c, C = _channels(a, b, A, B, CHANNELS_LAST)
    scale0, shift0 = _affine(mean0_ptr, var0_ptr, weight0_ptr, bias0_ptr, eps0, c, C)
    scale1, shift1 = _affine(mean1_ptr, var1_ptr, weight1_ptr, bias1_ptr, eps1, c, C)
    out = x * _blend(w0, scale0, scale1) + _blend(w0, shift0, shift1)
    if RELU:
        out = tl.where(out < 0, 0.0, out)  # a NaN stays one, as in torch
    tl.store(out_ptr + start + index, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr,  # (N, A, B) dtype of x
    x_ptr,  # (N, A, B) any float
    w0_ptr,  # (N,) fp32
    mean0_ptr,  # (C,) any float, as in the forward; so are the other seven
    var0_ptr,
    weight0_ptr,
    bias0_ptr,
    eps0,
    mean1_ptr,
    var1_ptr,
    weight1_ptr,
    bias1_ptr,
    eps1,
    dx_ptr,  # (N, A, B) dtype of x, out
    parts_ptr,  # (N, tiles a sample) fp32, out: the tile's part of dW0
    A,
    B,
    CHANNELS_LAST: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    sample, a, b = _tile(A, B, BLOCK_A, BLOCK_B)
    inside = (a < A) & (b < B)
    index = a * B + b  # within the sample, which starts at a 64-bit offset
    start = sample * A * B
    x = tl.load(x_ptr + start + index, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + start + index, mask=inside, other=0.0).to(tl.float32)  # 0 outside: no part of dW0
    w0 = tl.load(w0_ptr + sample)
    c, C = _channels(a, b, A, B, CHANNELS_LAST)
    scale0, shift0 = _affine(mean0_ptr, var0_ptr, weight0_ptr, bias0_ptr, eps0, c, C)
    scale1, shift1 = _affine(mean1_ptr, var1_ptr, weight1_ptr, bias1_ptr, eps1, c, C)
    scale = _blend(w0, scale0, scale1)
    if RELU:
        grad = tl.where(x * scale + _blend(w0, shift0, shift1) > 0, grad, 0.0)
    tl.store(dx_ptr + start + index, (grad * scale).to(dx_ptr.dtype.element_ty), mask=inside)
    part = tl.sum(tl.sum(grad * (x * (scale0 - scale1) + (shift0 - shift1)), 1))
    tl.store(parts_ptr + tl.program_id(0), part)


@triton.jit
def _tile(A, B, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr):
    """This program's sample, and the rows (BLOCK_A, 1) and columns (1, BLOCK_B) of its tile."""
    tiles_b = tl.cdiv(B, BLOCK_B)
    tiles = tl.cdiv(A, BLOCK_A) * tiles_b
    tile = tl.program_id(0) % tiles
    a = (tile // tiles_b) * BLOCK_A + tl.arange(0, BLOCK_A)
    b = (tile % tiles_b) * BLOCK_B + tl.arange(0, BLOCK_B)
    return (tl.program_id(0) // tiles).to(tl.int64), a[:, None], b[None, :]


@triton.jit
def _channels(a, b, A, B, CHANNELS_LAST: tl.constexpr):
    if CHANNELS_LAST:
        return b, B
    else:
        return a, A


@triton.jit
def _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps, c, C):
    """Scale and shift of each channel of ``c``, with BN(x) = x * scale + shift; finite beyond the last channel."""
    inside = c < C
    mean = tl.load(mean_ptr + c, mask=inside, other=0.0).to(tl.float32)
    var = tl.load(var_ptr + c, mask=inside, other=1.0).to(tl.float32)
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32)
    scale = weight * tl.rsqrt(var + eps)  # to 2 ulp, as torch's on CUDA; all programs of both passes get the same bits
    return scale, bias - mean * scale


@triton.jit
def _blend(w0, first, second):
    return w0 * first + (1.0 - w0) * second


def forward(x: Tensor, w0: Tensor, norm0: Norm, norm1: Norm, *, relu: bool) -> Tensor:
    """(N, C, H, W) features, contiguous or channels_last; (N,) fp32; two batch norms -> out, like x."""
    out = torch.empty_like(x)
    shape, grid = _launch(x)
    _forward_kernel[grid](x, w0, *norm0, *norm1, out, RELU=relu, **shape)
    return out


def backward(grad: Tensor, x: Tensor, w0: Tensor, norm0: Norm, norm1: Norm, *, relu: bool) -> tuple[Tensor, Tensor]:
    """The gradient of out, laid out as x, and the forward's arguments -> dx like x, dW0 (N,) fp32."""
    dx = torch.empty_like(x)
    shape, grid = _launch(x)
    parts = x.new_empty((len(x), grid[0] // len(x)), dtype=torch.float32)
    _backward_kernel[grid](grad, x, w0, *norm0, *norm1, dx, parts, RELU=relu, **shape)
    return dx, parts.sum(1)


def _launch(x: Tensor) -> tuple[dict[str, int | bool], tuple[int]]:
    """How a launch sees x, and its grid."""
    n, c, h, w = x.shape
    how = configurations.afa_fuse(c, h * w, x.dtype)
    channels_last = not x.is_contiguous()
    a, b = (h * w, c) if channels_last else (c, h * w)
    block_b = _row(b, how.longest_row)
    block_a = min(triton.next_power_of_2(a), (how.odd_tile if b % 8 else how.tile) // block_b)
    tiles = triton.cdiv(a, block_a) * triton.cdiv(b, block_b)
    blocks = {"BLOCK_A": block_a, "BLOCK_B": block_b, "num_warps": how.warps}
    return {"A": a, "B": b, "CHANNELS_LAST": channels_last, **blocks}, (n * tiles,)


def _row(b: int, longest: int) -> int:
    """Columns of a tile: a power of two that divides B where one of at least a cache sector does, else one around B."""
    divisor = b & -b
    return min(divisor if divisor >= 32 else triton.next_power_of_2(b), longest)
