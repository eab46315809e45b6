"""Row 7: AutoAttack for randomised defenses, as it is published, and re-evaluated.

As published, a single answer decides whether an attacked image was answered right, and an image that was lucky once has
stood. So every candidate that it made is answered R times more, and the one that is answered right least often counts.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastdef.attacks import frozen_eval
from fastdef.evaluation.adaptive import autoattack
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan, Predictions
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
    classifier = target.classifier
    counted: dict[int, Tensor] = {}  # what AutoAttack counts as right in the batch that it has just attacked

    def craft(batch: Batch) -> list[Tensor]:
        through = Differentiable(target, NoiseSeeds(batch.ids, SeedStream.ATTACK), len(batch.ids))
        with frozen_eval(classifier):
            right, tried = autoattack.rand(
                through, batch.images, batch.labels, eps=plan.eps, effort=budget.autoattack, seed=batch.seed
            )
        counted.clear()
        counted[batch.seed] = right
        return [torch.cat(tried)]

    def published(batch: Batch, points: Tensor, noise_samples: int, stream: SeedStream) -> Predictions:
        right = counted[batch.seed][:, None].cpu()
        nothing = torch.zeros_like(right)
        return Predictions(right, nothing.int(), nothing, torch.zeros(len(right)), torch.ones_like(right))

    effort = budget.autoattack
    first = AttackCase(
        7,
        PUBLISHED,
        craft,
        published,
        plan.eps,
        plan.expensive_images,
        1,
        counts=False,  # the next line is the same run
        keeps=True,
        settings={"iterations": effort.iterations, "eot": effort.eot, "losses": "APGD-CE, APGD-DLR"},
    )
    yield first
    yield replace(
        first,
        name=ANEW,
        craft=lambda batch: batch.kept(first.key).unflatten(0, (-1, len(batch.ids))).unbind(0),
        evaluate=by_label(target),
        noise_samples=plan.reevaluations,
        counts=True,
        keeps=False,
        needs=first.key,
    )
