"""How far the naive loop and ours end apart, on the same real images with the same noise."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fastdef.checkpoint import load
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.defense.naive import lockstep, whole_network


@dataclass(frozen=True)
class Agreement:
    """Shares and distances over the images.

    Attributes:
        images: how many.
        steps_equal: share with the same number of steps.
        steps_apart: largest difference in steps.
        within: share whose every pixel is within 1e-5.
        median: median of an image's largest difference.
        largest: largest difference of a pixel.
    """

    images: int
    steps_equal: float
    steps_apart: int
    within: float
    median: float
    largest: float


def agreement(model: Path, dataset: Dataset, *, dtype: torch.dtype) -> Agreement:
    """Run both loops uncompiled in ``dtype``, float32 or float64, on every image of ``dataset``."""
    checkpoint = load(model)
    checkpoint.model.to(dtype)
    images = dataset.floats(0, len(dataset)).to(dtype)
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    noise = defense.noised(images) - images
    with whole_network(checkpoint.model, defense.layer) as losses:
        expected, expected_steps, _ = lockstep(
            losses, images, noise, beta=defense.beta, delta=defense.delta, max_steps=defense.max_steps
        )
    smoothed = defense.smooth(images, noise=noise)
    apart = (smoothed.steps - expected_steps).abs()
    largest = (smoothed.images - expected).abs().amax((1, 2, 3))
    return Agreement(
        images=len(images),
        steps_equal=float((apart == 0).double().mean()),
        steps_apart=int(apart.max()),
        within=float((largest <= 1e-5).double().mean()),
        median=float(largest.median()),
        largest=float(largest.max()),
    )
