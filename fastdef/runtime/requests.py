"""What a session is asked for, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One image to defend.

    Attributes:
        image: (C, H, W) in [0, 1], on any device.
        noise_id: what its noise hangs on, with the seed and the outer loop; the session draws one where it is None.
        max_steps: steps that each outer loop may take; the session's where it is None.
        deadline: ``time.monotonic()`` at which its smoothing ends, done or not.
        valid: False for a stand-in of what was no image.
        noise: (C, H, W) to add in place of the defense's own, in every outer loop.
    """

    image: Tensor
    noise_id: int | None = None
    max_steps: int | None = None
    deadline: float | None = None
    valid: bool = True
    noise: Tensor | None = None


@dataclass(frozen=True)
class Result:
    """What became of one image.

    Attributes:
        request_id: what ``Session.add`` returned for it.
        logits: (classes,) float32, the log of the probabilities averaged over the outer loops that had a slot; NaN
            where none had, or what came was no image; (0,) where nothing is classified.
        image: (C, H, W) float32, smoothed, of the first outer loop.
        steps: gradient steps, of all outer loops together.
        loss: the largest L_F that an outer loop ended with, NaN where none had a slot.
        converged: every outer loop got to the threshold.
        expired: the deadline passed before the smoothing was done.
        started: an outer loop had a slot; False where the deadline passed before, or what came was no image.
        invalid: what came was no image.
        noise_id: what its noise hung on.
    """

    request_id: int
    logits: Tensor
    image: Tensor
    steps: int
    loss: float
    converged: bool
    expired: bool
    started: bool
    invalid: bool
    noise_id: int


@dataclass(frozen=True)
class BatchResult:
    """The results of a batch, stacked.

    Attributes:
        logits: (N, classes) float32, the log of the probabilities averaged over the outer loops; (N, 0) where nothing
            is classified.
        images: (N, C, H, W) float32, smoothed, of the first outer loop, in pixel units; outside [0, 1] where the
            descent went there.
        steps: (N,) int64 gradient steps, of all outer loops together.
        loss: (N,) float32, the largest L_F that an outer loop ended with.
        converged: (N,) bool, True where every outer loop got to the threshold.
        expired: (N,) bool, True where the deadline passed first.
        started: (N,) bool, False where the deadline passed before the smoothing began: the logits are NaN.
        invalid: (N,) bool, True where what came was no image, not finite or not in [0, 1]: the logits are NaN.
    """

    logits: Tensor
    images: Tensor
    steps: Tensor
    loss: Tensor
    converged: Tensor
    expired: Tensor
    started: Tensor
    invalid: Tensor

    @classmethod
    def of(cls, results: Sequence[Result]) -> "BatchResult":
        """Stack results."""
        return cls(
            logits=torch.stack([result.logits for result in results]),
            images=torch.stack([result.image for result in results]),
            steps=torch.tensor([result.steps for result in results]),
            loss=torch.tensor([result.loss for result in results]),
            converged=torch.tensor([result.converged for result in results]),
            expired=torch.tensor([result.expired for result in results]),
            started=torch.tensor([result.started for result in results]),
            invalid=torch.tensor([result.invalid for result in results]),
        )
