"""Row 0: what must hold for the other rows to mean anything (Carlini et al., 2019).

Clean images; random noise, which must do less than an attack; a radius at which nothing can stand; accuracy against eps
and against iterations; and planted adversarial examples, which an attack that deserves the name has to find.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastdef.attacks import cross_entropy, margin, untargeted
from fastdef.evaluation.adaptive.attack_case import Attack, AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.bpda import bpda
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows.planted import PLANTED as PLANTED
from fastdef.evaluation.adaptive.rows.planted import planted
from fastdef.evaluation.adaptive.score import by_label

CLEAN, NOISE, HUGE, CURVE = "clean", "random noise", "eps 64/255", "curve:"


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Clean, noise, the huge radius, both curves, the planted examples."""
    budget = plan.budget
    case = partial(AttackCase, 0, evaluate=by_label(plan.target), counts=False)
    yield case(CLEAN, Clean(plan), eps=0.0, images=plan.images, noise_samples=plan.reevaluations)
    yield case(NOISE, Noise(plan), eps=plan.eps, images=plan.images, noise_samples=plan.noise_samples)
    if plan.target.classifier is None:
        for name in (HUGE, PLANTED):
            yield NotRun(0, name, "gradients are needed, and this target only answers")
        return

    def attacked(name: str, eps: float, iterations: int, losses: tuple[str, ...] = ("cross-entropy",)) -> AttackCase:
        craft = Ascent(plan, plan.gradient, losses, plan.typical_steps, plan.eot, eps, iterations)
        return case(name, craft, eps=eps, images=plan.expensive_images, noise_samples=plan.noise_samples)

    yield attacked(HUGE, 64 / 255, budget.iterations, tuple(_LOSSES))
    for eps in budget.curve_eps:
        yield attacked(eps_name(eps), eps / 255, budget.iterations)
    for iterations in budget.curve_iterations:
        yield attacked(iterations_name(iterations), plan.eps, iterations)
    yield planted(plan)


def eps_name(eps: float) -> str:
    """Of a case of the curve against eps, in 255ths."""
    return f"{CURVE} eps {eps:g}/255"


def iterations_name(iterations: int) -> str:
    """Of a case of the curve against iterations."""
    return f"{CURVE} iterations {iterations}"


class Clean(Attack):
    """No attack."""

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The images."""
        return [batch.images]


class Noise(Attack):
    """Random noise, anywhere in the ball."""

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The images and noise."""
        noise = torch.rand(batch.images.shape, generator=batch.generator(), device=batch.images.device)
        return [(batch.images + self.plan.eps * (2 * noise - 1)).clamp(0, 1)]


@dataclass(frozen=True)
class Ascent(Attack):
    """Auto-PGD of some radius and length, by one loss after another.

    Attributes:
        gradient: how it is got, in words.
        losses: "cross-entropy", "margin".
        steps: of the loop; None for all there are.
        eot: draws that a gradient is the mean of.
        eps: radius in pixel units.
        iterations: by each loss.
    """

    gradient: str
    losses: tuple[str, ...]
    steps: int | None
    eot: int
    eps: float
    iterations: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        draws, target = NoiseSeeds(batch.ids, SeedStream.ATTACK), self.plan.target
        goals = [untargeted(batch.labels, _LOSSES[loss]) for loss in self.losses]
        asks = [bpda(target, goal, draws, eot=self.eot, steps=self.steps) for goal in goals]
        return [self.plan.search(asks, batch, eps=self.eps, iterations=self.iterations)]


_LOSSES = {"cross-entropy": cross_entropy, "margin": margin}
