"""Putting a file's tensors into a model of which only the shapes exist yet."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Entry(NamedTuple):
    """What is known of a stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def compare(model: nn.Module, entries: Mapping[str, Entry], *, floats: tuple[torch.dtype, ...] = _FLOATS) -> None:
    """Refuse entries that are not the model's state: each tensor, of its shape, and nothing else.

    Args:
        model: may be on the meta device.
        entries: by state-dict key.
        floats: the dtypes that a floating-point parameter may be stored as; others need to be as in the model.

    Raises:
        ValueError: naming the first tensor, in the model's order, that is missing or misfit, or the first extra one.
    """
    expected = model.state_dict()
    for key, tensor in expected.items():
        if key not in entries:
            raise ValueError(f"it lacks the tensor {key!r} of shape {tuple(tensor.shape)}")
        shape, dtype = entries[key]
        if shape != tuple(tensor.shape):
            raise ValueError(f"its tensor {key!r} needs shape {tuple(tensor.shape)}, got {shape}")
        allowed = floats if tensor.is_floating_point() else (tensor.dtype,)
        if dtype not in allowed:
            raise ValueError(f"its tensor {key!r} needs to be of {' or '.join(map(str, allowed))}, got {dtype}")
    if extra := sorted(entries.keys() - expected.keys()):
        raise ValueError(f"its tensor {extra[0]!r} is not one of the model's")


def assemble(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """``model`` from the meta device, with these tensors, floats as float32, in eval mode.

    The tensors are copied: a file that is mapped into memory may change after it was read. Nothing is initialized, so
    the global random state stays as it was.
    """
    owned = {
        key: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for key, tensor in tensors.items()
    }
    model.load_state_dict(owned, strict=True, assign=True)
    return model.eval()
