"""Feature smoothing loss, L(F) = mean |F - mean F| of each sample, and its gradient (Active Defense, Eq. 3).

A sample is M values in one dense block; their order means nothing, so channels_last needs no copy. There are two
schedules, and both give the same bits every time: no atomics, sums in fixed order.

Many samples (one a multiprocessor or more): a program takes a sample whole, one after the other. Few programs run at a
time, so that what they read first is still in the L2 cache when they read it again.

    _whole     reads F, twice or thrice of which once from memory; writes loss, mean, tilt and, if asked, the field

Few samples: a sample is split over P programs. Each leaves a partial sum, and the next kernel adds the P partials of
its sample.

    _sums      reads F             partial sums of F
    _moments   reads F, partials   partial sums of |F - m| and of sign(F - m)
    _finish    reads partials      loss, mean and tilt
    _field     reads F, partials   writes the field, scaled or not

The loss is two reads; its backward one read and one write; loss and field together three reads and one write.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdef.kernels import configurations

_MOST_PARTS = 64  # programs a sample, at most; a program adds that many partials in one vector


@triton.jit
def _whole_kernel(
    f_ptr,  # (N, M) any float
    loss_ptr,  # (N,) fp32, out
    mean_ptr,  # (N,) fp32, out
    tilt_ptr,  # (N,) fp32, out
    field_ptr,  # (N, M) dtype of f, out where FIELD
    N,
    M,
    FIELD: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    for sample in range(tl.program_id(0).to(tl.int64), N, tl.num_programs(0)):
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for offset in tl.range(0, M, BLOCK, num_stages=STAGES):
            index = offset + tl.arange(0, BLOCK)
            f = tl.load(f_ptr + sample * M + index, mask=index < M, other=0.0, eviction_policy="evict_last")
            total += f.to(tl.float32)
        mean = tl.div_rn(tl.sum(total), M * 1.0)
        deviation = tl.zeros((BLOCK,), dtype=tl.float32)
        signs = tl.zeros((BLOCK,), dtype=tl.float32)
        for offset in tl.range(0, M, BLOCK, num_stages=STAGES):
            index = offset + tl.arange(0, BLOCK)
            f = tl.load(f_ptr + sample * M + index, mask=index < M, other=0.0, eviction_policy="evict_last")
            d = tl.where(index < M, f.to(tl.float32) - mean, 0.0)  # a masked lane must add nothing to either sum
            deviation += tl.abs(d)
            signs += _sign(d)
        tilt = tl.div_rn(tl.sum(signs), M * 1.0)
        tl.store(loss_ptr + sample, tl.div_rn(tl.sum(deviation), M * 1.0))
        tl.store(mean_ptr + sample, mean)
        tl.store(tilt_ptr + sample, tilt)
        if FIELD:
            for offset in tl.range(0, M, BLOCK, num_stages=STAGES):
                index = offset + tl.arange(0, BLOCK)
                inside = index < M
                f = tl.load(f_ptr + sample * M + index, mask=inside, other=0.0, eviction_policy="evict_first")
                field = (_sign(f.to(tl.float32) - mean) - tilt).to(field_ptr.dtype.element_ty)
                tl.store(field_ptr + sample * M + index, field, mask=inside, eviction_policy="evict_first")


@triton.jit
def _sums_kernel(
    f_ptr,  # (N, M) any float
    sums_ptr,  # (N, P) fp32, out
    M,
    SPAN,  # values a program takes, a multiple of BLOCK
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    start = part * SPAN
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for offset in range(start, start + SPAN, BLOCK):
        index = offset + tl.arange(0, BLOCK)
        total += tl.load(f_ptr + sample * M + index, mask=index < M, other=0.0).to(tl.float32)
    tl.store(sums_ptr + sample * tl.num_programs(1) + part, tl.sum(total))


@triton.jit
def _moments_kernel(
    f_ptr,  # (N, M) any float
    sums_ptr,  # (N, P) fp32
    deviations_ptr,  # (N, P) fp32, out: sum of |F - m|
    signs_ptr,  # (N, P) fp32, out: sum of sign(F - m); a whole number under 2^24, so exact
    M,
    SPAN,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,  # P rounded up to a power of two
):
    sample = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    mean = _mean(sums_ptr, sample, M, tl.num_programs(1), PARTS)
    deviation = tl.zeros((BLOCK,), dtype=tl.float32)
    signs = tl.zeros((BLOCK,), dtype=tl.float32)
    start = part * SPAN
    for offset in range(start, start + SPAN, BLOCK):
        index = offset + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + sample * M + index, mask=index < M, other=0.0).to(tl.float32)
        d = tl.where(index < M, f - mean, 0.0)  # a masked lane must add nothing to either sum
        deviation += tl.abs(d)
        signs += _sign(d)
    tl.store(deviations_ptr + sample * tl.num_programs(1) + part, tl.sum(deviation))
    tl.store(signs_ptr + sample * tl.num_programs(1) + part, tl.sum(signs))


@triton.jit
def _finish_kernel(
    sums_ptr,  # (N, P) fp32
    deviations_ptr,  # (N, P) fp32
    signs_ptr,  # (N, P) fp32
    loss_ptr,  # (N,) fp32, out
    mean_ptr,  # (N,) fp32, out
    tilt_ptr,  # (N,) fp32, out
    M,
    P,
    PARTS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    tl.store(mean_ptr + sample, _mean(sums_ptr, sample, M, P, PARTS))
    tl.store(loss_ptr + sample, _mean(deviations_ptr, sample, M, P, PARTS))
    tl.store(tilt_ptr + sample, _mean(signs_ptr, sample, M, P, PARTS))


@triton.jit
def _field_kernel(
    f_ptr,  # (N, M) any float
    mean_ptr,  # (N,) fp32
    tilt_ptr,  # (N,) fp32
    scale_ptr,  # (N,) fp32, read where SCALED
    field_ptr,  # (N, M) dtype of f, out
    M,
    SPAN,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    mean = tl.load(mean_ptr + sample)
    tilt = tl.load(tilt_ptr + sample)
    start = tl.program_id(1) * SPAN
    for offset in range(start, start + SPAN, BLOCK):
        index = offset + tl.arange(0, BLOCK)
        f = tl.load(f_ptr + sample * M + index, mask=index < M, other=0.0).to(tl.float32)
        field = _sign(f - mean) - tilt
        if SCALED:
            field = field * tl.load(scale_ptr + sample)
        tl.store(field_ptr + sample * M + index, field.to(field_ptr.dtype.element_ty), mask=index < M)


@triton.jit
def _mean(partials_ptr, sample, M, P, PARTS: tl.constexpr):
    part = tl.arange(0, PARTS)
    partials = tl.load(partials_ptr + sample * P + part, mask=part < P, other=0.0)
    return tl.div_rn(tl.sum(partials), M * 1.0)  # plain division approximates: M / M need not be 1 there


@triton.jit
def _sign(d):
    return tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))


def forward(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, M) dense features -> loss, mean, tilt, each (N,) fp32."""
    if f.shape[0] >= _multiprocessors(f):
        return _whole(f, None)
    n, m = f.shape
    parts, span, how = _launch(f)
    sums, deviations, signs = f.new_empty((3, n, parts), dtype=torch.float32)
    loss, mean, tilt = _outputs(f)
    padded = triton.next_power_of_2(parts)
    _sums_kernel[(n, parts)](f, sums, m, span, **how)
    _moments_kernel[(n, parts)](f, sums, deviations, signs, m, span, PARTS=padded, **how)
    _finish_kernel[(n,)](sums, deviations, signs, loss, mean, tilt, m, parts, PARTS=padded)
    return loss, mean, tilt


def _outputs(f: Tensor) -> list[Tensor]:
    return [f.new_empty(len(f), dtype=torch.float32) for _ in range(3)]  # an operation's outputs share no memory


def _whole(f: Tensor, field: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, mean and tilt, and into ``field`` the field; samples are taken whole."""
    n, m = f.shape
    how = configurations.whole(m, f.dtype)
    loss, mean, tilt = _outputs(f)
    grid = (min(n, how.programs * _multiprocessors(f)),)
    options = {"BLOCK": how.block, "STAGES": how.stages, "num_warps": how.warps}
    out = f if field is None else field
    _whole_kernel[grid](f, loss, mean, tilt, out, n, m, FIELD=field is not None, **options)
    return loss, mean, tilt


def _multiprocessors(f: Tensor) -> int:
    """Of the device; a few for the interpreter, so that small tests take both schedules."""
    return torch.cuda.get_device_properties(f.device).multi_processor_count if f.is_cuda else 4


def backward(grad: Tensor, f: Tensor, mean: Tensor, tilt: Tensor) -> Tensor:
    """(N,) fp32 gradient, (N, M) dense features, and what ``forward`` gave -> (N, M) gradient, dtype of f."""
    return _field(f, mean, tilt, scale=grad / f.shape[1])


def forward_with_field(f: Tensor) -> tuple[Tensor, Tensor]:
    """(N, M) dense features -> (N,) fp32 loss, (N, M) unscaled field in the dtype of f."""
    if f.shape[0] >= _multiprocessors(f):
        field = torch.empty_like(f)
        return _whole(f, field)[0], field
    loss, mean, tilt = forward(f)
    return loss, _field(f, mean, tilt, scale=None)


def _field(f: Tensor, mean: Tensor, tilt: Tensor, *, scale: Tensor | None) -> Tensor:
    n, m = f.shape
    parts, span, how = _launch(f)
    field = torch.empty_like(f)
    _field_kernel[(n, parts)](
        f, mean, tilt, mean if scale is None else scale, field, m, span, SCALED=scale is not None, **how
    )
    return field


def _launch(f: Tensor) -> tuple[int, int, dict[str, int]]:
    """Programs a sample, values a program, and the constants of a launch: no part is without a block."""
    n, m = f.shape
    how = configurations.smoothing(m, f.dtype)
    blocks = triton.cdiv(m, how.block)
    wanted = max(1, min(blocks, _MOST_PARTS, triton.cdiv(how.programs, n)))
    each = triton.cdiv(blocks, wanted)
    return triton.cdiv(blocks, each), each * how.block, {"BLOCK": how.block, "num_warps": how.warps}
