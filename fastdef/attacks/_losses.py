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


def probability_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_other p - p_y of the probabilities, from -1 to 1 (PMA, arXiv 2411.15210)."""
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    p = logits.softmax(1)
    return p.masked_fill(own, -torch.inf).amax(1) - p.gather(1, labels[:, None])[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_other z) / (z_1st - z_3rd): blind to the logits' scale (APGD, Eq. 6)."""
    ordered = logits.sort(dim=1).values
    right = logits.gather(1, labels[:, None])[:, 0]
    leads = right == ordered[:, -1]
    other = torch.where(leads, ordered[:, -2], ordered[:, -1])
    return -(right - other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The same towards a class: -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2) (APGD, Eq. 7)."""
    ordered = logits.sort(dim=1).values
    right, target = (logits.gather(1, classes[:, None])[:, 0] for classes in (labels, targets))
    return -(right - target) / (ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2 + 1e-12)
