"""A linear model, whose best attack is known, and the cases that rows make of it."""

from dataclasses import replace

import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.attack_case import AttackCase, Plan

IMAGES, CLASSES, SIDE = 5, 4, 4


class Linear(torch.nn.Module):
    """Four classes of which two compete: z_0 = w x - b, z_1 = -z_0, and two that never win."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(SIDE * SIDE, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        lead = (x.flatten(1) - 0.5) @ self.weight + 0.3
        return torch.stack([lead, -lead, lead * 0.1 - 20, -lead * 0.1 - 21], 1)


LINEAR = Linear().eval().requires_grad_(False)
LEAST = 0.3 / float(LINEAR.weight.abs().sum())  # radius at which an image of 0.5 can be turned, and not before


def cases(row, target, tiny, *, eps, surrogate=None, **changes):
    budget = replace(tiny, **{"iterations": 20, "queries": 3000, "images": IMAGES, "batch": IMAGES, **changes})
    plan = Plan(target, target.classifier, budget, eps, IMAGES, CLASSES, surrogate)
    return {case.name: case for case in row.cases(plan) if isinstance(case, AttackCase)}


GUARDED = Target.purified(LINEAR, lambda images, ids: images, random=False)
PLAIN = Target.plain(LINEAR)


def asked(monkeypatch, case, batch):
    """What a case has searched, and that it hands on what the search gives back."""
    seen, result = [], torch.rand_like(batch.images)

    def search(self, asks, given, **options):
        seen.extend(asks)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "search", search)
        (points,) = case.craft(batch)
    assert points is result
    return seen
