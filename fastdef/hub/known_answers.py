"""What a model gives on images that everybody can make: whether a copy of it is whole, and set up right."""

from typing import Any

import torch
from torch import Tensor, nn

from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense

COUNT = 4


def known_images(shape: tuple[int, int, int]) -> Tensor:
    """(4, C, H, W) floats in [0, 1] that hang on their shape alone: squares of 8 pixels, of torch's generator 0."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (COUNT, channels, -(-height // 8), -(-width // 8)), generator=generator)
    fine = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :height, :width]
    return fine.float() / 255


def known_answers(checkpoint: Checkpoint, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Class, probability and steps of each of :func:`known_images`, with seed 0 and the ids 0 to 3, on the CPU.

    Raises:
        ValueError: for a model that does not take images of that shape.
    """
    images = known_images(shape)
    if checkpoint.defense is None:
        return _answers(checkpoint, _probabilities(checkpoint.model, images), None)
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False, seed=0)
    result = defense.defend(images)
    return _answers(checkpoint, result.logits.exp(), result.steps)


def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        probabilities: Tensor = model(images).softmax(1)
    return probabilities


def _answers(checkpoint: Checkpoint, probabilities: Tensor, steps: Tensor | None) -> list[dict[str, Any]]:
    best = [(round(float(row.max()), 4), checkpoint.classes[int(row.argmax())]) for row in probabilities]
    taken = [None] * len(best) if steps is None else steps.tolist()
    return [{"class": name, "probability": p, "steps": n} for (p, name), n in zip(best, taken, strict=True)]
