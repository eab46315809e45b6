"""What an accelerated descent saves, and what it changes: steps, distance, accuracy, beside Algorithm 1 as written."""

import time
from typing import Any

import torch
from torch import Tensor

from fastdef.attacks import pgd, predicted
from fastdef.bench.machine import machine
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense, Gradient, Polyak
from fastdef.runtime import Solver


def bench_solvers(defense: ActiveDefense, dataset: Dataset) -> dict[str, Any]:
    """The same images, noise and threshold under each solver, clean and under PGD-20 at 8/255.

    Distances are of the smoothed images to the images as they came, and to those that ``gradient`` ends with.

    Args:
        defense: gives model, layer and parameters.
        dataset: on the device of the model.
    """
    images, labels = dataset.floats(0, len(dataset)), dataset.labels
    generator = torch.Generator(images.device).manual_seed(0)
    attacked = pgd(defense.model, images, labels, eps=8 / 255, step=2 / 255, steps=20, generator=generator)
    solvers: dict[str, Solver] = {"gradient": Gradient(defense.beta)}
    solvers |= {f"polyak {margin}": Polyak(margin=margin) for margin in (0.005, 0.02, 0.05)}
    rows: dict[str, dict[str, Any]] = {}
    plain: dict[str, Tensor] = {}
    for name, solver in solvers.items():
        other = ActiveDefense.from_config(defense.model, defense.config(), solver=solver, slots=defense.slots)
        other.smooth(images[: defense.slots])  # compiles
        rows[name] = {}
        for kind, given in (("clean", images), ("attacked", attacked)):
            begin = time.perf_counter()
            answers = other.defend(given)
            seconds = time.perf_counter() - begin
            reference = plain.setdefault(kind, answers.images)
            rows[name][kind] = {
                "accuracy": float((predicted(answers.logits).to(labels.device) == labels).float().mean()),
                "steps_median": int(answers.steps.median()),
                "steps_mean": float(answers.steps.double().mean()),
                "steps_max": int(answers.steps.max()),
                "converged": float(answers.converged.float().mean()),
                "distance": _distance(answers.images, given),
                "distance_to_gradient": _distance(answers.images, reference),
                "images_per_second": len(given) / seconds,
            }
    return {
        "machine": machine(images.device),
        "data": f"{dataset.name} {dataset.split}",
        "images": len(dataset),
        "defense": defense.config(),
        "solvers": rows,
    }


def _distance(a: Tensor, b: Tensor) -> dict[str, float]:
    """Medians over the images of the largest and of the root mean square difference of a pixel."""
    apart = (a - b).flatten(1)
    return {"largest": float(apart.abs().amax(1).median()), "rms": float(apart.square().mean(1).sqrt().median())}
