"""Does an attack's gradient belong to what is deployed? It is held against finite differences of the answers.

At two points of an attack's path, for random directions u of signs, the change of the loss that the gradient foretells,
<g, u>, is correlated with the one that is measured, (f(x + h u) - f(x - h u)) / 2h. The loss, log p of another class
less log p of the label, does not saturate; both sides meet the same noise. On the shipped classifiers the correlation
is above 0.8 for a true gradient, about 0.5 for rounding and for Active Defense, and under 0.3 where the backward is
mirrored: sign flips and zeros give 0 or less.
"""

import torch
from torch import Tensor

from fastdef.attacks import Goal, frozen_eval
from fastdef.evaluation.adaptive.attack_case import Plan
from fastdef.evaluation.adaptive.bpda import bpda
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream

ALIGNED = 0.4  # correlation from which a gradient is taken for the pipeline's
_DIRECTIONS = 16  # of each point


def other_classes(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """(N,) another class for each label, by chance."""
    shift = torch.randint(1, classes, labels.shape, generator=generator, device=labels.device)
    return (labels + shift) % classes


def log_odds(labels: Tensor, others: Tensor) -> Goal:
    """Raise log p of the others over the labels, which is linear in the logits; right where the label leads."""

    def raised(logits: Tensor, rows: Tensor) -> Tensor:
        other, label = (logits.gather(1, classes[rows, None])[:, 0] for classes in (others, labels))
        return other - label

    return Goal(raised, lambda logits, rows: raised(logits, rows) < 0)


def alignment(plan: Plan, images: Tensor, labels: Tensor, *, seed: int) -> float:
    """Correlation of the attack's gradient with finite differences, -1 to 1; 0 where one of them is zero or NaN.

    Args:
        plan: its target has a classifier.
        images: (N, C, H, W); a few are enough.
        labels: (N,).
        seed: of points and directions.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    goal = log_odds(labels, other_classes(labels, plan.classes, generator))
    ids, rows = torch.arange(len(images)), torch.arange(len(images), device=images.device)
    noise = 2 * torch.rand(images.shape, generator=generator, device=images.device) - 1
    point, step = (images + plan.eps / 2 * noise).clamp(0, 1), plan.eps / 2
    found = []
    with frozen_eval(plan.target.classifier):
        for _ in range(2):
            draws = NoiseSeeds(ids, SeedStream.ALIGNMENT)
            gradient = bpda(plan.target, goal, draws, eot=1, steps=plan.typical_steps)(point, rows).gradient
            found.append(_correlation(plan, goal, point, gradient, step, generator))
            point = (point + step * gradient.nan_to_num().sign()).clamp(0, 1)
    return float(torch.cat(found).mean())


def _correlation(
    plan: Plan, goal: Goal, point: Tensor, gradient: Tensor, step: float, generator: torch.Generator
) -> Tensor:
    """(N,) correlation of foretold and measured changes over directions."""
    ids, rows = torch.arange(len(point)), torch.arange(len(point), device=point.device)
    ids = NoiseSeeds(ids, SeedStream.ALIGNMENT).next(rows, 1)
    foretold, measured = [], []
    for _ in range(_DIRECTIONS):
        signs = (torch.rand(point.shape, generator=generator, device=point.device) < 0.5).to(point) * 2 - 1
        up, down = ((point + side * step * signs).clamp(0, 1) for side in (1, -1))
        values = [goal.loss(plan.target.logits(side, ids, plan.typical_steps), rows) for side in (up, down)]
        measured.append(values[0] - values[1])
        foretold.append((gradient * (up - down)).flatten(1).sum(1))
    return torch.cosine_similarity(torch.stack(foretold), torch.stack(measured), dim=0).nan_to_num()
