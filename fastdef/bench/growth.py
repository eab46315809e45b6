"""How the cost of a step grows: with the batch, with the image, with the width of the network."""

import statistics
from typing import Any

import torch

from fastdef.bench.machine import seconds
from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet

BASE = {"depth": 10, "width": 2, "size": 32, "batch": 64}
AXES = {
    "batch": (1, 4, 16, 64, 256, 1024),
    "size": (16, 28, 32, 48, 64),
    "width": (1, 2, 4, 8),
}


def bench_growth(device: torch.device, *, turns: int = 7) -> dict[str, dict[str, float]]:
    """Milliseconds of one compiled step an image, along each axis from WRN-10-2, 3 x 32 x 32, a batch of 64."""
    return {
        axis: {str(value): _milliseconds({**BASE, axis: value}, device, turns) for value in values}
        for axis, values in AXES.items()
    }


def _milliseconds(point: dict[str, Any], device: torch.device, turns: int) -> float:
    torch.manual_seed(0)
    model = WideResNet(point["depth"], point["width"], in_channels=3).eval().to(device)
    size, batch = point["size"], point["batch"]
    images = torch.rand(batch, 3, size, size, device=device)
    counts = torch.zeros(batch, dtype=torch.int32, device=device)
    defense = ActiveDefense(model, delta=1e-9, slots=batch)  # a threshold that nothing reaches: every step counts
    slots = defense.empty_slots(batch, images[0])
    slots.insert(list(range(batch)), range(batch), images, counts, counts + 10**6)
    for _ in range(2):
        slots.advance()
    before = slots.slot_steps
    taken = [seconds(slots.advance, device) for _ in range(turns)]
    evaluations = (slots.slot_steps - before) / turns
    return statistics.median(taken) / evaluations * 1e3
