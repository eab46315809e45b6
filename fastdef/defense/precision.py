"""Whether a defense may compute in bfloat16, where it is left to choose: does it decide alike, is it fast?"""

import logging

import torch

from fastdef.runtime import BatchResult

JUDGED = 128  # images that both precisions decide
_AGREE = 0.98  # share of them that has to be decided, and has to converge, alike: other noise changes more
_ASKED = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private to torch, so they may go
_LOG = logging.getLogger(__name__)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it: AMX or AVX512-BF16 of a CPU, the tensor cores of a GPU."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(getattr(torch.cpu, asked, bool)() for asked in _ASKED)


def check_agreed(value: object) -> bool | None:
    """What a model file says of it.

    Raises:
        ValueError: for what is neither true nor false.
    """
    if value is None or isinstance(value, bool):
        return value
    raise ValueError(f"a model file's bfloat16 is true or false, got {value!r:.80}")


def agrees(full: BatchResult, reduced: BatchResult) -> bool:
    """Whether the same images with the same noise are decided, and converge, alike but for a few."""
    decided = full.logits.argmax(1) == reduced.logits.argmax(1)
    converged = full.converged == reduced.converged
    return min(float(decided.float().mean()), float(converged.float().mean())) >= _AGREE


def choose_dtype(agreed: bool | None, device: torch.device) -> torch.dtype:
    """bfloat16 where it decides as float32 does and is fast, else float32; says which, and why.

    Args:
        agreed: what :func:`agrees` said; None where nobody asked.
        device: where the defense is to run.
    """
    if agreed and fast_bfloat16(device):
        _LOG.info("the defense computes in bfloat16, which decided the calibration's images as float32 does")
        return torch.bfloat16
    reason = f"bfloat16 is not fast on this {device.type}"
    if not agreed:
        reason = "no calibration has compared bfloat16" if agreed is None else "bfloat16 decided otherwise"
    _LOG.info("the defense computes in float32: %s", reason)
    return torch.float32
