"""What the defense returns for a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdef.defense.pipeline import Answer
from fastdef.runtime.scheduler import End


@dataclass(frozen=True)
class Smoothed:
    """A batch after smoothing.

    Attributes:
        images: (N, C, H, W) float32, in pixel units, outside [0, 1] where the descent went there.
        steps: (N,) int64 gradient steps taken.
        loss: (N,) float32 L_F that the image ended with.
        converged: (N,) bool, False where ``max_steps`` came first.
    """

    images: Tensor
    steps: Tensor
    loss: Tensor
    converged: Tensor

    @classmethod
    def of(cls, ends: Sequence[End], delta: float) -> "Smoothed":
        """Stack what left the slots."""
        loss = torch.tensor([end.loss for end in ends])
        return cls(
            images=torch.stack([end.image for end in ends]),
            steps=torch.tensor([end.steps for end in ends]),
            loss=loss,
            converged=loss <= delta,
        )


@dataclass(frozen=True)
class Defended:
    """A batch after smoothing and classification: the rows of :class:`Answer`, stacked.

    Attributes:
        logits: (N, classes) float32, the log of the probabilities averaged over the outer loops.
        images: (N, C, H, W) float32, smoothed, of the first outer loop.
        steps: (N,) int64 gradient steps, of all outer loops together.
        loss: (N,) float32, the largest L_F that an outer loop ended with.
        converged: (N,) bool, True where every outer loop got to the threshold.
        expired: (N,) bool, True where the deadline passed first.
        invalid: (N,) bool, True where what came was no image: not finite, or not in [0, 1].
    """

    logits: Tensor
    images: Tensor
    steps: Tensor
    loss: Tensor
    converged: Tensor
    expired: Tensor
    invalid: Tensor

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Defended":
        """Stack answers."""
        return cls(
            logits=torch.stack([answer.logits for answer in answers]),
            images=torch.stack([answer.image for answer in answers]),
            steps=torch.tensor([answer.steps for answer in answers]),
            loss=torch.tensor([answer.loss for answer in answers]),
            converged=torch.tensor([answer.converged for answer in answers]),
            expired=torch.tensor([answer.expired for answer in answers]),
            invalid=torch.tensor([answer.invalid for answer in answers]),
        )
