"""Row 8: what attackers have learned since the papers: another loss, smooth changes, and noise that is known.

The probability margin is PMA's (Xie et al., 2024, arXiv 2411.15210), low frequencies are DiffBreak's (Kassis et al.,
2024, arXiv 2411.16598), and fixed randomness is what a deployment with one seed gives away (arXiv 2505.22839).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastdef.attacks import Query, QueryResult
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, Evaluate, NotRun, Plan, Predictions
from fastdef.evaluation.adaptive.noise_seeds import KnownSeeds, NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows.bpda import PROBABILITY_MARGIN, Through
from fastdef.evaluation.adaptive.score import by_label
from fastdef.evaluation.adaptive.target import Target

SMOOTH, KNOWN = "APGD-CE, low frequencies", "APGD-CE, the noise known"
_BLOCK = 4  # pixels of a side that change together


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Each through the loop's typical length."""
    if plan.target.classifier is None:
        yield NotRun(8, "later attacks", "no gradients")
        return
    case = partial(AttackCase, 8, eps=plan.eps, images=plan.images)
    counted = partial(case, evaluate=by_label(plan.target), noise_samples=plan.noise_samples)
    way: dict[str, Any] = {"gradient": plan.gradient, "steps": plan.typical_steps, "iterations": plan.budget.iterations}
    yield counted("probability margin, APGD", Through(plan, loss=PROBABILITY_MARGIN, eot=plan.eot, **way))
    yield counted(SMOOTH, Smooth(plan, loss="cross-entropy", eot=plan.eot, block=_BLOCK, **way))
    if not plan.target.random or plan.target.purify is None:
        yield NotRun(8, KNOWN, "nothing is random" if not plan.target.random else "no id says what the noise is")
        return
    known = KnownNoise(plan, loss="cross-entropy", eot=1, **way)
    yield case(KNOWN, known, evaluate=with_known_noise(plan.target), noise_samples=1, counts=False)


def with_known_noise(target: Target) -> Evaluate:
    """One answer to each image, with the very noise that :class:`KnownNoise` attacked."""
    evaluate = by_label(target)

    def known(batch: Batch, images: Tensor, noise_samples: int, stream: SeedStream) -> Predictions:
        return evaluate(batch, images, 1, SeedStream.ATTACK)

    return known


@dataclass(frozen=True)
class KnownNoise(Through):
    """On the noise that will be drawn: what is left of a defense whose seed is known, or always the same.

    Of a defense of several outer loops it knows the first one's, as every attack of row 3 goes through the first.
    """

    def draws(self, batch: Batch) -> NoiseSeeds:
        """Those of :func:`with_known_noise`."""
        return KnownSeeds(batch.ids, SeedStream.ATTACK)


@dataclass(frozen=True)
class Smooth(Through):
    """Over changes that are constant in blocks, which noise and smoothing take away least of.

    Attributes:
        block: pixels of a block's side.
    """

    block: int

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """The best points."""
        height, width = (max(1, side // self.block) for side in batch.images.shape[2:])
        middle = torch.full_like(batch.images[..., :height, :width], 0.5)  # where no change leaves [0, 1]
        asks = [in_blocks(ask, batch.images) for ask in self.asks(batch)]
        found = self.plan.search(asks, replace(batch, images=middle), iterations=self.iterations)
        return [_changed(batch.images, found)]


def in_blocks(ask: Query, images: Tensor) -> Query:
    """The same question of (n, C, h, w) changes: 0.5 and what is added to each block of the images."""

    def asked(changes: Tensor, rows: Tensor) -> QueryResult:
        result = ask(_changed(images[rows], changes), rows)
        with torch.enable_grad():
            changes = changes.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(_changed(images[rows], changes), changes, result.gradient)
        return QueryResult(result.loss, gradient, result.right)

    return asked


def _changed(images: Tensor, changes: Tensor) -> Tensor:
    return (images + _spread(changes, images)).clamp(0, 1)


def _spread(changes: Tensor, images: Tensor) -> Tensor:
    return interpolate(changes - 0.5, size=images.shape[2:], mode="nearest")
