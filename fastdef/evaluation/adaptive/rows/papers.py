"""Row 5: the attacks that the papers themselves made on their defenses, and attacks on the loop.

Active Defense (Section 5.3):  CE + lambda * max(L_F, delta) on the undefended model.
AFA (Section 5.2):             CE and the weight generator's BCE(W0), jointly, over seven ratios.
The loop:                      CE - L_F / delta through the defense, so that it ends early; CE + L_F / delta, and L_F
                               alone, so that it runs long.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastdef.attacks import (
    RATIOS,
    Goal,
    QueryResult,
    adaptive_pgd,
    cross_entropy,
    frozen_eval,
    step_size,
    untargeted,
    white_box,
)
from fastdef.defense import ActiveDefense
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.bpda import bpda, in_parts, mean_over_draws
from fastdef.evaluation.adaptive.budget import DECADES
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label
from fastdef.nn import AFA2d, prefix
from fastdef.ops import smoothing_loss

ON_THE_LOOP = {"exit early": (1.0, -1.0), "slow down": (1.0, 1.0), "slow down at all costs": (0.0, 1.0)}
_PGD_STEPS = 20


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Whatever the target has that a paper has attacked."""
    defense, model = plan.target.defense, plan.model
    base = AttackCase(5, "", lambda batch: [], by_label(plan.target), plan.eps, plan.images, plan.noise_samples)
    fused = model is not None and any(isinstance(module, AFA2d) for module in model.modules())
    if defense is not None:
        for sign in (-1, 1):
            for power in DECADES:
                name = f"CE {'+-'[sign < 0]} 10^{power:g} max(L_F, delta)"
                settings = {"lambda": sign * 10**power, "crafted_on": "the undefended model"}
                yield replace(base, name=name, craft=_static(plan, defense, sign * 10**power), settings=settings)
        for name, (ce, smooth) in ON_THE_LOOP.items():
            settings = {**plan.typical, "raised": f"{ce:g} CE {smooth:+g} L_F / delta"}
            craft, images = (
                _on_the_loop(plan, defense, ce, smooth),
                plan.expensive_images if smooth > 0 else plan.images,
            )
            yield replace(base, name=name, craft=craft, images=images, settings=settings)
    elif fused:
        for ratio in RATIOS:
            name = f"CE and BCE(W0), {ratio:g} to 1"
            yield replace(base, name=name, craft=_on_w0(plan, ratio), settings={"ratio": ratio, "steps": _PGD_STEPS})
    else:
        yield NotRun(5, "the papers' adaptive attacks", "neither Active Defense nor AFA")


def _static(plan: Plan, defense: ActiveDefense, weight: float) -> Callable[[Batch], list[Tensor]]:
    """The highest loss is kept, and not the first wrong answer: the undefended model answers all of them wrong."""
    losses, model = prefix(defense.model, defense.layer), defense.model

    def craft(batch: Batch) -> list[Tensor]:
        def ask(x: Tensor, rows: Tensor) -> QueryResult:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                bound = smoothing_loss(losses(x)).clamp_min(defense.delta)
                loss = cross_entropy(model(x), batch.labels[rows]) + weight * bound
                (gradient,) = torch.autograd.grad(loss.sum(), x)
            return QueryResult(loss.detach(), gradient, torch.ones_like(loss.detach()))

        with frozen_eval(model):
            return [plan.search([in_parts(ask, plan.target.batch)], batch)]

    return craft


def _on_the_loop(plan: Plan, defense: ActiveDefense, ce: float, smooth: float) -> Callable[[Batch], list[Tensor]]:
    """Of what runs long the highest loss is kept, whether it is answered right or wrong."""
    losses, eot = prefix(defense.model, defense.layer), plan.budget.eot
    rough = Goal(lambda values, rows: values, lambda values, rows: torch.ones_like(values, dtype=torch.bool))

    def craft(batch: Batch) -> list[Tensor]:
        draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)
        answer = bpda(plan.target, untargeted(batch.labels), draws, eot=eot, steps=plan.typical_steps)
        roughness = white_box(lambda noisy: smoothing_loss(losses(noisy)) / defense.delta, rough)

        def ask(x: Tensor, rows: Tensor) -> QueryResult:
            noisy = defense.noised(x.detach().repeat_interleave(eot, 0), ids=draws.next(rows, eot))
            parts = in_parts(roughness, plan.target.batch)(noisy, rows.repeat_interleave(eot))
            extra = mean_over_draws(parts, eot)
            if ce == 0:
                return extra
            main = answer(x, rows)
            return QueryResult(
                ce * main.loss + smooth * extra.loss,
                ce * main.gradient + smooth * extra.gradient,
                main.right if smooth < 0 else extra.right,
            )

        with frozen_eval(defense.model):
            return [plan.search([ask], batch)]

    return craft


def _on_w0(plan: Plan, ratio: float) -> Callable[[Batch], list[Tensor]]:
    def craft(batch: Batch) -> list[Tensor]:
        model = plan.model
        if model is None:
            raise ValueError("the attack on W0 needs a model with gradients")
        return [
            adaptive_pgd(
                model,
                batch.images,
                batch.labels,
                eps=plan.eps,
                step=step_size(plan.eps, _PGD_STEPS),
                steps=_PGD_STEPS,
                ratio=ratio,
                generator=batch.generator(),
            )
        ]

    return craft
