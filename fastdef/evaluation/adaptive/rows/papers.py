"""Row 5: the attacks that the papers themselves made on their defenses, and attacks on the loop.

Active Defense (Section 5.3):  CE + lambda * max(L_F, delta) on the undefended model.
AFA (Section 5.2):             CE and the weight generator's BCE(W0), jointly, over seven ratios.
The loop:                      CE - L_F / delta through the defense, so that it ends early; CE + L_F / delta, and L_F
                               alone, so that it runs long.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

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
from fastdef.evaluation.adaptive.attack_case import UNRECORDED, Attack, AttackCase, Batch, NotRun, Plan
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
    case = partial(AttackCase, 5, evaluate=by_label(plan.target), eps=plan.eps, noise_samples=plan.noise_samples)
    fused = model is not None and any(isinstance(module, AFA2d) for module in model.modules())
    if defense is not None:
        iterations = plan.budget.iterations
        for sign in (-1, 1):
            for power in DECADES:
                name = f"CE {'+-'[sign < 0]} 10^{power:g} max(L_F, delta)"
                yield case(name, OnUndefended(plan, defense, sign * 10**power, iterations), images=plan.images)
        for name, (ce, smooth) in ON_THE_LOOP.items():
            craft = OnTheLoop(plan, defense, ce, smooth, plan.typical_steps, plan.eot, iterations)
            yield case(name, craft, images=plan.expensive_images if smooth > 0 else plan.images)
    elif model is not None and fused:
        for ratio in RATIOS:
            yield case(f"CE and BCE(W0), {ratio:g} to 1", OnW0(plan, model, ratio, _PGD_STEPS), images=plan.images)
    else:
        yield NotRun(5, "the papers' adaptive attacks", "neither Active Defense nor AFA")


@dataclass(frozen=True)
class OnUndefended(Attack):
    """CE + weight * max(L_F, delta) on the undefended model (Active Defense, Section 5.3).

    The highest loss is kept, and not the first wrong answer: the undefended model answers all of them wrong.

    Attributes:
        defense: whose model and loss they are.
        weight: the paper's lambda.
        iterations: of Auto-PGD.
    """

    defense: ActiveDefense = field(repr=False, metadata=UNRECORDED)
    weight: float
    iterations: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        defense, model = self.defense, self.defense.model
        losses = prefix(model, defense.layer)

        def ask(x: Tensor, rows: Tensor) -> QueryResult:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                bound = smoothing_loss(losses(x)).clamp_min(defense.delta)
                loss = cross_entropy(model(x), batch.labels[rows]) + self.weight * bound
                (gradient,) = torch.autograd.grad(loss.sum(), x)
            return QueryResult(loss.detach(), gradient, torch.ones_like(loss.detach()))

        with frozen_eval(model):
            return [self.plan.search([in_parts(ask, self.plan.target.batch)], batch, iterations=self.iterations)]


@dataclass(frozen=True)
class OnTheLoop(Attack):
    """ce * CE + smooth * L_F / delta, through the defense.

    Of what runs long the highest loss is kept, whether it is answered right or wrong.

    Attributes:
        defense: whose loop it is.
        ce: weight of the cross-entropy.
        smooth: weight of L_F / delta.
        steps: of the loop.
        eot: draws that a gradient is the mean of.
        iterations: of Auto-PGD.
    """

    defense: ActiveDefense = field(repr=False, metadata=UNRECORDED)
    ce: float
    smooth: float
    steps: int | None
    eot: int
    iterations: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        defense, target = self.defense, self.plan.target
        losses = prefix(defense.model, defense.layer)
        draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)
        answer = bpda(target, untargeted(batch.labels), draws, eot=self.eot, steps=self.steps)
        roughness = white_box(lambda noisy: smoothing_loss(losses(noisy)) / defense.delta, _ROUGH)

        def ask(x: Tensor, rows: Tensor) -> QueryResult:
            noisy = defense.noised(x.detach().repeat_interleave(self.eot, 0), ids=draws.next(rows, self.eot))
            parts = in_parts(roughness, target.batch)(noisy, rows.repeat_interleave(self.eot))
            extra = mean_over_draws(parts, self.eot)
            return extra if self.ce == 0 else self._sum(answer(x, rows), extra)

        with frozen_eval(defense.model):
            return [self.plan.search([ask], batch, iterations=self.iterations)]

    def _sum(self, main: QueryResult, extra: QueryResult) -> QueryResult:
        return QueryResult(
            self.ce * main.loss + self.smooth * extra.loss,
            self.ce * main.gradient + self.smooth * extra.gradient,
            main.right if self.smooth < 0 else extra.right,
        )


_ROUGH = Goal(lambda values, rows: values, lambda values, rows: torch.ones_like(values, dtype=torch.bool))


@dataclass(frozen=True)
class OnW0(Attack):
    """CE and the weight generator's BCE(W0), jointly (AFA, Section 5.2).

    Attributes:
        model: the AFA model.
        ratio: of the two.
        steps: of PGD.
    """

    model: nn.Module = field(repr=False, metadata=UNRECORDED)
    ratio: float
    steps: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The points that it ends at."""
        attack = partial(adaptive_pgd, eps=self.plan.eps, step=step_size(self.plan.eps, self.steps), steps=self.steps)
        return [attack(self.model, batch.images, batch.labels, ratio=self.ratio, generator=batch.generator())]
