"""Row 0: what must hold for the other rows to mean anything (Carlini et al., 2019).

Clean images; random noise, which must do less than an attack; a radius at which nothing can stand; accuracy against eps
and against iterations; and planted adversarial examples, which an attack that deserves the name has to find.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastdef.attacks import cross_entropy, margin, untargeted
from fastdef.evaluation.adaptive.attack_case import AttackCase, AttackFunction, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.bpda import bpda
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows.planted import PLANTED as PLANTED
from fastdef.evaluation.adaptive.rows.planted import planted
from fastdef.evaluation.adaptive.score import by_label

Loss = Callable[[Tensor, Tensor], Tensor]
CLEAN, NOISE, HUGE, CURVE = "clean", "random noise", "eps 64/255", "curve:"


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Clean, noise, the huge radius, both curves, the planted examples."""
    budget = plan.budget
    base = AttackCase(
        0, CLEAN, lambda batch: [batch.images], by_label(plan.target), 0.0, plan.images, plan.reevaluations, False
    )
    yield base
    yield replace(
        base, name=NOISE, craft=lambda batch: [_noise(batch, plan.eps)], eps=plan.eps, noise_samples=plan.noise_samples
    )
    if plan.target.classifier is None:
        for name in (HUGE, PLANTED):
            yield NotRun(0, name, "gradients are needed, and this target only answers")
        return

    def attacked(name: str, eps: float, iterations: int) -> AttackCase:
        settings = {**plan.typical, "iterations": iterations}
        losses = (cross_entropy, margin) if name == HUGE else (cross_entropy,)
        craft = _attack(plan, eps, iterations, losses)
        return replace(
            base,
            name=name,
            craft=craft,
            eps=eps,
            images=plan.expensive_images,
            noise_samples=plan.noise_samples,
            settings={**settings, "losses": len(losses)},
        )

    yield attacked(HUGE, 64 / 255, budget.iterations)
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


def _noise(batch: Batch, eps: float) -> Tensor:
    noise = torch.rand(batch.images.shape, generator=batch.generator(), device=batch.images.device)
    return (batch.images + eps * (2 * noise - 1)).clamp(0, 1)


def _attack(plan: Plan, eps: float, iterations: int, losses: Sequence[Loss]) -> AttackFunction:
    def craft(batch: Batch) -> list[Tensor]:
        draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)
        goals = [untargeted(batch.labels, loss) for loss in losses]
        asks = [bpda(plan.target, goal, draws, eot=plan.budget.eot, steps=plan.typical_steps) for goal in goals]
        return [plan.search(asks, batch, eps=eps, iterations=iterations)]

    return craft
