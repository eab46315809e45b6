"""The active test: adversarial examples are planted, and the attack has to find them (Zimmermann et al., 2022).

For each image x a readout of the answers is chosen, r = log p of another class less log p of the label, and a corner p
of x's ball is sought that raises it, by flips of blocks of signs (SignHunter): values alone decide, so a gradient that
is wrong cannot mislead the search. The boundary stands between the highest of many random points and p,

    b = top + 3/4 (r(p) - top)

so that random search misses it, p lies beyond it by construction, and an attack that follows the gradient, with all of
the ball's dimensions at its disposal, passes it. One that does not is broken, or the pipeline hides its gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdef.attacks import Goal, predicted, sign_hunter
from fastdef.evaluation.adaptive.alignment import log_odds, other_classes
from fastdef.evaluation.adaptive.attack_case import UNRECORDED, Attack, AttackCase, Batch, Plan, Predictions
from fastdef.evaluation.adaptive.bpda import bpda
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream, noise_seeds

_SHARE = 0.75  # of the way from the highest random point to p, where the boundary stands
_HUNT = 64  # answers that the search for p takes
_RANDOM = 32  # random points, or as many as the attack has iterations
_DRAWS = 2  # of the noise, for each answer
PLANTED = "planted examples missed"


@dataclass(frozen=True)
class Readout:
    """log p of another class over the label, less a bias for each image: above 0 where the planted side is answered.

    Attributes:
        goal: raises the readout without its bias.
        bias: (N,).
        planted: (N, C, H, W) the points that were planted.
    """

    goal: Goal
    bias: Tensor
    planted: Tensor

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n, classes) logits of the ``rows`` -> (n,)."""
        return self.goal.loss(logits, rows) - self.bias[rows]


def planted(plan: Plan) -> AttackCase:
    """The case whose accuracy is the share of planted examples that the attack missed."""
    readouts: dict[int, Readout] = {}

    def readout(batch: Batch) -> Readout:
        if batch.seed not in readouts:
            readouts.clear()
            readouts[batch.seed] = plant(plan, batch)
        return readouts[batch.seed]

    def evaluate(batch: Batch, points: Tensor, noise_samples: int, stream: SeedStream) -> Predictions:
        return _evaluate(plan, batch, readout(batch), points, noise_samples, stream)

    craft = Finds(plan, readout, plan.gradient, plan.typical_steps, plan.eot, plan.budget.iterations)
    return AttackCase(0, PLANTED, craft, evaluate, plan.eps, plan.expensive_images, plan.reevaluations, counts=False)


@dataclass(frozen=True)
class Finds(Attack):
    """Auto-PGD on the readout.

    Attributes:
        readout: of a batch.
        gradient: how it is got, in words.
        steps: of the loop; None for all there are.
        eot: draws that a gradient is the mean of.
        iterations: of Auto-PGD.
    """

    readout: Callable[[Batch], Readout] = field(repr=False, metadata=UNRECORDED)
    gradient: str
    steps: int | None
    eot: int
    iterations: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        readout, draws = self.readout(batch), NoiseSeeds(batch.ids, SeedStream.ATTACK)
        goal = Goal(readout, lambda logits, rows: readout(logits, rows) <= 0)
        ask = bpda(self.plan.target, goal, draws, eot=self.eot, steps=self.steps)
        return [self.plan.search([ask], batch, iterations=self.iterations)]


def plant(plan: Plan, batch: Batch) -> Readout:
    """Readouts, points and boundaries of a batch, by its seed."""
    generator, images = batch.generator(), batch.images
    goal = log_odds(batch.labels, other_classes(batch.labels, plan.classes, generator))
    draws = _DRAWS if plan.target.random else 1

    def value(points: Tensor, first: int = 0) -> Tensor:
        return _values(plan, batch, goal, points, range(first, first + draws), SeedStream.PLANT).mean(1)

    random = [value(random_corner(images, plan.eps, generator)) for _ in range(max(_RANDOM, plan.budget.iterations))]
    top = torch.stack(random).amax(0)
    point = sign_hunter(value, images, eps=plan.eps, queries=_HUNT, generator=generator)
    reached = value(point, first=draws)  # by noise that did not choose it
    return Readout(goal, top + _SHARE * (reached - top).clamp_min(0), point)


def random_corner(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Points x + eps * s, s random signs, in [0, 1]."""
    signs = (torch.rand(images.shape, generator=generator, device=images.device) < 0.5).to(images) * 2 - 1
    return (images + eps * signs).clamp(0, 1)


def _values(plan: Plan, batch: Batch, goal: Goal, points: Tensor, draws: range, stream: SeedStream) -> Tensor:
    """(N, draws) values of the batch's points, through as much of the loop as the attack goes."""
    ids, count = noise_seeds(batch.ids, draws, stream), len(draws)
    rows = torch.arange(len(points), device=points.device).repeat_interleave(count)
    logits = plan.target.logits(points.repeat_interleave(count, 0), ids, plan.typical_steps)
    values = goal.loss(logits, rows).where(predicted(logits) >= 0, -torch.inf)  # no answer is no find
    return values.unflatten(0, (-1, count))


def _evaluate(
    plan: Plan, batch: Batch, readout: Readout, points: Tensor, noise_samples: int, stream: SeedStream
) -> Predictions:
    """Which planted examples were missed, of those that hold: where most draws answer the image right and p wrong."""

    def above(images: Tensor) -> Tensor:
        values = _values(plan, batch, readout.goal, images, range(noise_samples), stream)
        return (values - readout.bias[:, None]).cpu()

    def most(values: Tensor) -> Tensor:
        return (values > 0).float().mean(1) > 0.5

    holds = ~most(above(batch.images)) & most(above(readout.planted))
    values = above(points)
    missed = (~most(values))[:, None].expand(-1, noise_samples)[holds]
    nothing = torch.zeros_like(missed)
    return Predictions(
        right=missed,
        steps=nothing.int(),
        capped=nothing,
        loss=values.nan_to_num(neginf=0.0).mean(1)[holds],
        answered=values.isfinite()[holds],
    )
