"""The active test: adversarial examples are planted, and the attack has to find them (Zimmermann et al., 2022).

For each image x one corner p of its ball is chosen by chance, and a readout w is fitted on the pipeline's answers that
tells p from points inside: a linear discriminant over draws of the noise, its threshold half way. By construction p
lies within eps and is answered wrong. An attack on the same pipeline that finds no such point is broken, or the
pipeline hides its gradients from it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdef.attacks import Goal, predicted
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, Plan, Predictions
from fastdef.evaluation.adaptive.bpda import bpda
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream, noise_seeds
from fastdef.evaluation.adaptive.target import Answers, Target

_INSIDE = 4  # points inside the ball that the readout must leave alone
_INNER = 0.5  # of eps: as far as those points go
_DRAWS = 8  # of each point, for the readout
_RIDGE = 0.1  # of the mean variance, on the covariance's diagonal
PLANTED = "planted examples missed"


@dataclass(frozen=True)
class Readout:
    """w log p - b for each image, p the probabilities: above 0 where the planted side is answered.

    Attributes:
        weights: (N, classes).
        bias: (N,).
        planted: (N, C, H, W) the points that were planted.
    """

    weights: Tensor
    bias: Tensor
    planted: Tensor

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n, classes) logits of the ``rows`` -> (n,)."""
        return (logits.log_softmax(1) * self.weights[rows]).sum(1) - self.bias[rows]


def planted(plan: Plan) -> AttackCase:
    """The case whose accuracy is the share of planted examples that the attack missed."""
    readouts: dict[int, Readout] = {}

    def readout(batch: Batch) -> Readout:
        if batch.seed not in readouts:
            readouts.clear()
            readouts[batch.seed] = plant(plan.target, batch.images, batch.ids, eps=plan.eps, seed=batch.seed)
        return readouts[batch.seed]

    return AttackCase(
        0,
        PLANTED,
        lambda batch: [_craft(plan, batch, readout(batch))],
        lambda batch, points, noise_samples, stream: _evaluate(
            plan.target, batch, readout(batch), points, noise_samples, stream
        ),
        eps=plan.eps,
        images=plan.heavy,
        noise_samples=plan.rescored,
        counts=False,
        settings=plan.typical,
    )


def plant(target: Target, images: Tensor, ids: Tensor, *, eps: float, seed: int) -> Readout:
    """Fit the readouts of a batch; the corners and the points inside come from the seed."""
    generator = torch.Generator(images.device).manual_seed(seed)
    draws = _DRAWS if target.random else 1

    def anywhere() -> Tensor:
        return 2 * torch.rand(images.shape, generator=generator, device=images.device) - 1

    inside = [images + _INNER * eps * anywhere() for _ in range(_INSIDE)]
    corner = images + eps * anywhere().sign()
    logits = [_answers(target, point.clamp(0, 1), ids, n, draws) for n, point in enumerate([*inside, corner])]
    around, there = torch.cat(logits[:-1], 1), logits[-1]  # (N, draws, classes)
    apart = there.mean(1) - around.mean(1)
    spread = _covariance(around) + (_covariance(there) if draws > 1 else 0)
    weights = torch.linalg.solve(spread, apart)
    middle = (there.mean(1) + around.mean(1)) / 2
    return Readout(weights, (weights * middle).sum(1), corner.clamp(0, 1))


def _answers(target: Target, points: Tensor, ids: Tensor, number: int, draws: int) -> Tensor:
    drawn = noise_seeds(ids, range(number * draws, (number + 1) * draws), SeedStream.PLANT)
    answers = target.answer(points.repeat_interleave(draws, 0), drawn)
    return answers.logits.log_softmax(1).unflatten(0, (-1, draws))


def _covariance(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / logits.shape[1]
    size = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-6)
    return covariance + _RIDGE * size[:, None, None] * torch.eye(logits.shape[2], device=logits.device)


def _craft(plan: Plan, batch: Batch, readout: Readout) -> Tensor:
    goal = Goal(readout, lambda logits, rows: readout(logits, rows) <= 0)
    draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)
    ask = bpda(plan.target, goal, draws, eot=plan.budget.eot, steps=plan.typical_steps)
    return plan.search([ask], batch)


def _evaluate(
    target: Target, batch: Batch, readout: Readout, points: Tensor, noise_samples: int, stream: SeedStream
) -> Predictions:
    """Which planted examples were missed, of those that hold: where most draws answer the image right and p wrong."""

    def missed(images: Tensor) -> tuple[Tensor, Tensor, Answers]:
        answers = target.answer(
            images.repeat_interleave(noise_samples, 0), noise_seeds(batch.ids, range(noise_samples), stream)
        )
        rows = torch.arange(len(images), device=images.device).repeat_interleave(noise_samples)
        above = readout(answers.logits, rows).unflatten(0, (-1, noise_samples))
        return (above <= 0).cpu(), above, answers

    holds = (missed(batch.images)[0].float().mean(1) > 0.5) & (missed(readout.planted)[0].float().mean(1) < 0.5)
    stood, above, answers = missed(points)
    fooled = stood.float().mean(1, keepdim=True) < 0.5  # as a planted example is: by most of the draws
    return Predictions(
        right=(~fooled).expand(-1, noise_samples)[holds],
        steps=answers.steps.int().view(-1, noise_samples)[holds],
        capped=answers.capped.view(-1, noise_samples)[holds],
        loss=above.mean(1).cpu()[holds],
        answered=(predicted(answers.logits) >= 0).cpu().view(-1, noise_samples)[holds],
    )
