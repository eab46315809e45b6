"""Does the exported file answer as PyTorch does? The same images, the same noise, side by side."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense
from fastdef.export.engine import load_engine


@dataclass(frozen=True)
class Parity:
    """What came of a comparison on N images.

    Attributes:
        images: N.
        steps_equal: share of the images that took the same number of steps.
        steps_apart: largest difference in steps.
        probabilities_apart: largest difference of a probability.
        decisions_equal: share of the images with the same class.
        smoothed_apart: largest difference of a pixel.
    """

    images: int
    steps_equal: float
    steps_apart: int
    probabilities_apart: float
    decisions_equal: float
    smoothed_apart: float

    @property
    def holds(self) -> bool:
        """Steps equal for 99 % and never more than one apart, probabilities within 1e-4, decisions equal."""
        return (
            self.steps_equal >= 0.99
            and self.steps_apart <= 1
            and self.probabilities_apart <= 1e-4
            and self.decisions_equal == 1
        )

    def __str__(self) -> str:
        return (
            f"{self.images} images: steps equal for {self.steps_equal:.1%} and at most {self.steps_apart} apart, "
            f"probabilities within {self.probabilities_apart:.1e}, decisions equal for {self.decisions_equal:.1%}, "
            f"pixels within {self.smoothed_apart:.1e}"
        )


def check_parity(checkpoint: Checkpoint, folder: Path, images: Tensor) -> Parity:
    """Compare ``folder/defended.onnx`` in ONNX Runtime with PyTorch.

    Args:
        checkpoint: what was exported.
        folder: where to.
        images: (N, C, H, W) in [0, 1].

    Raises:
        ValueError: for a checkpoint without an Active Defense, or a file that does not load.
    """
    expected = ActiveDefense.from_checkpoint(checkpoint, compile=False).defend(images)
    with load_engine(folder) as engine:
        got = engine(images.numpy())
    steps = (torch.from_numpy(got.steps) - expected.steps).abs()
    probabilities = torch.from_numpy(got.probabilities)
    return Parity(
        images=len(images),
        steps_equal=float((steps == 0).float().mean()),
        steps_apart=int(steps.max()),
        probabilities_apart=float((probabilities - expected.logits.exp()).abs().max()),
        decisions_equal=float((probabilities.argmax(1) == expected.logits.argmax(1)).float().mean()),
        smoothed_apart=float((torch.from_numpy(got.smoothed) - expected.images).abs().max()),
    )
