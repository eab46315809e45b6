"""What an attack raises: (N, classes) logits and (N,) labels to (N,) losses."""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample."""
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, *, confidence: float = 50.0) -> Tensor:
    """The margin loss that both papers call C&W: -relu(z_y - max_other z + confidence), to be raised.

    Args:
        logits: (N, classes).
        labels: (N,) int64.
        confidence: the loss is flat only once the wrong class leads by this much.
    """
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    right = logits.gather(1, labels[:, None])[:, 0]
    other = logits.masked_fill(own, -torch.inf).amax(1)
    return -functional.relu(right - other + confidence)
