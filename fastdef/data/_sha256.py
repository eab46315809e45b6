"""What tensors hold, as a short text that another content does not have."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def sha256(tensors: Iterable[Tensor]) -> str:
    """The hexadecimal SHA-256 of the tensors' bytes, one after another, wherever they are; no shapes, no names."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
