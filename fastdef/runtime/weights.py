"""Whether a model's weights are those that a step was made of, whoever has changed them since."""

from itertools import chain

import torch
from torch import Tensor, nn

Fingerprint = tuple[object, ...]


@torch.no_grad()
def fingerprint(model: nn.Module) -> Fingerprint:
    """Where the parameters and buffers lie, their version counters, and the sum of their bits.

    The sum is for what moves no counter: a fused optimizer, ``weight.data``, another process. It reads every weight
    once, and waits for a GPU once.

    Raises:
        ValueError: for weights made in ``torch.inference_mode``, which have no counter.
    """
    tensors = list(chain(model.parameters(), model.buffers()))
    if any(tensor.is_inference() for tensor in tensors):
        raise ValueError("ActiveDefense needs a model made outside torch.inference_mode, got weights made inside")
    places = ((tensor.data_ptr(), tensor._version) for tensor in tensors)
    sums = [_sum_of_bits(tensor) for tensor in tensors if tensor.numel()]
    devices: dict[torch.device, list[Tensor]] = {}
    for value in sums:
        devices.setdefault(value.device, []).append(value)
    return *places, *(tuple(torch.stack(values).tolist()) for values in devices.values())


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """() int64, modulo 2^64: one changed weight changes it for sure."""
    bits = _in_memory_order(tensor.detach()).view(torch.uint8)
    if bits.storage_offset() % 8:
        bits = bits.clone()  # a view by eight bytes begins at a multiple of eight
    words = len(bits) // 8 * 8
    whole = bits[:words].view(torch.int64).sum()
    return whole if words == len(bits) else whole + bits[words:].sum(dtype=torch.int64)


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Flat, without a copy of weights in channels-last."""
    strides = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    dense, expected = True, 1
    for stride, size in strides:
        dense, expected = dense and stride == expected, expected * size
    return tensor.as_strided((tensor.numel(),), (1,)) if dense else tensor.reshape(-1)
