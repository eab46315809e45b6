"""A linear model, whose best attack is known, and the cases that rows make of it."""

from dataclasses import replace

import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.attack_case import AttackCase, NotRun, Plan

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


OPAQUE = Target.opaque(PLAIN.answer, random=False)  # answers, and nothing else


def planned(target, tiny, *, images=IMAGES, classes=CLASSES, surrogate=None, alignment=None, **changes):
    """A plan whose figures all differ from one another."""
    figures = {"iterations": 20, "noise_samples": 7, "reevaluations": 8, "eot": 3, "expensive_share": 0.6}
    budget = replace(tiny, **{**figures, **changes})
    return Plan(target, target.classifier, budget, EPS, images, classes, surrogate, alignment)


EPS = 0.05


def facts(row, plan):
    """By name, the images, the answers of each and the settings of a row's cases."""
    made = [case for case in row.cases(plan) if isinstance(case, AttackCase)]
    assert len({case.name for case in made}) == len(made)
    return {case.name: (case.images, case.noise_samples, case.craft.settings) for case in made}


def counting(row, plan):
    """Names of the cases that may be the headline."""
    return [case.name for case in row.cases(plan) if isinstance(case, AttackCase) and case.counts]


def left(row, plan):
    """What a row has not, and why."""
    return [(case.row, case.name, case.reason) for case in row.cases(plan) if isinstance(case, NotRun)]
