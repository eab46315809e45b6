"""Row 7: AutoAttack for randomised defenses, as it is published, and re-evaluated.

As published, a single answer decides whether an attacked image was answered right, and an image that was lucky once has
stood. So every candidate that it made is answered R times more, and the one that is answered right least often counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fastdef.attacks import frozen_eval
from fastdef.evaluation.adaptive import autoattack
from fastdef.evaluation.adaptive.attack_case import (
    UNRECORDED,
    Attack,
    AttackCase,
    Batch,
    Kept,
    NotRun,
    Plan,
    Predictions,
)
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label
from fastdef.evaluation.adaptive.target import Target

PUBLISHED, ANEW = "AutoAttack rand, as published", "AutoAttack rand, re-evaluated"


class Differentiable(nn.Module):
    """A random target as autograd sees it: new noise in every call, BPDA's gradient."""

    def __init__(self, target: Target, draws: NoiseSeeds, count: int) -> None:
        super().__init__()
        self._target = target
        self._draws = draws
        self._count = count

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) images -> (n, classes) logits."""
        target = self._target
        if target.classifier is None:
            raise ValueError("AutoAttack rand needs a target with a classifier")
        if target.purify is None:
            answers: Tensor = target.classifier(images)
            return answers
        ids = self._draws.next(torch.arange(len(images)) % self._count, 1)
        change = target.purify(images.detach(), ids, None) - images.detach()
        logits: Tensor = target.classifier(images + change)
        return logits


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """The same run, counted in two ways."""
    budget, target = plan.budget, plan.target
    if not target.random or target.classifier is None:
        reason = "nothing is random" if not target.random else "gradients are needed, and this target only answers"
        yield NotRun(7, "AutoAttack rand", reason)
        return
    if plan.classes < 3:
        yield NotRun(7, "AutoAttack rand", f"its DLR loss needs three classes, and there are {plan.classes}")
        return
    counted: dict[int, Tensor] = {}
    effort = budget.autoattack
    craft = Rand(plan, target.classifier, counted, effort.iterations, effort.eot, "APGD-CE, APGD-DLR")

    def published(batch: Batch, points: Tensor, noise_samples: int, stream: SeedStream) -> Predictions:
        right = counted[batch.seed][:, None].cpu()
        nothing = torch.zeros_like(right)
        return Predictions(right, nothing.int(), nothing, torch.zeros(len(right)), torch.ones_like(right))

    # The first does not count: the second is the same run.
    case = partial(AttackCase, 7, eps=plan.eps, images=plan.expensive_images)
    first = case(PUBLISHED, craft, evaluate=published, noise_samples=1, counts=False, keeps=True)
    yield first
    anew = Kept(plan, first.key)
    yield case(ANEW, anew, evaluate=by_label(target), noise_samples=plan.reevaluations, needs=first.key)


@dataclass(frozen=True)
class Rand(Attack):
    """AutoAttack's version for random defenses.

    Attributes:
        classifier: that it differentiates.
        counted: by a batch's seed, which of the images it counts as right; of the last batch.
        iterations: of its parts.
        eot: draws that a gradient is the mean of.
        losses: of its parts.
    """

    classifier: nn.Module = field(repr=False, metadata=UNRECORDED)
    counted: dict[int, Tensor] = field(repr=False, metadata=UNRECORDED)
    iterations: int
    eot: int
    losses: str

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """All that it made, one after the other, as one."""
        through = Differentiable(self.plan.target, NoiseSeeds(batch.ids, SeedStream.ATTACK), len(batch.ids))
        effort = AutoAttackEffort(iterations=self.iterations, eot=self.eot)
        attack = partial(autoattack.rand, eps=self.plan.eps, effort=effort, seed=batch.seed)
        with frozen_eval(self.classifier):
            right, tried = attack(through, batch.images, batch.labels)
        self.counted.clear()
        self.counted[batch.seed] = right
        return [torch.cat(tried)]
