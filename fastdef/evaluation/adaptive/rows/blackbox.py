"""Row 6: attacks that see answers and nothing else, by scores (Square) and by decisions (RayS)."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastdef.attacks import rays
from fastdef.evaluation.adaptive import autoattack
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Both, with the same number of queries."""
    settings = {"queries": plan.budget.queries, "queries_a_decision": _draws(plan)}
    base = AttackCase(
        6,
        "Square",
        _square(plan),
        by_label(plan.target),
        plan.eps,
        plan.expensive_images,
        plan.noise_samples,
        settings=settings,
    )
    yield base
    yield replace(base, name="RayS", craft=_rays(plan))


def _draws(plan: Plan) -> int:
    """A random defense is asked several times, or one lucky answer would end the attack."""
    return plan.budget.query_draws if plan.target.random else 1


def _square(plan: Plan) -> Callable[[Batch], list[Tensor]]:
    def craft(batch: Batch) -> list[Tensor]:
        draws = NoiseSeeds(batch.ids, SeedStream.QUERIES)

        def predict(images: Tensor) -> Tensor:  # Square does not say whose images they are: each its own noise will do
            rows = torch.arange(len(images)) % len(batch.ids)
            return _ask(plan, images, draws, rows).log_softmax(2).mean(1)

        return [
            autoattack.square(
                predict,
                batch.images,
                batch.labels,
                eps=plan.eps,
                queries=plan.budget.queries // _draws(plan),
                seed=batch.seed,
            )
        ]

    return craft


def _rays(plan: Plan) -> Callable[[Batch], list[Tensor]]:
    def craft(batch: Batch) -> list[Tensor]:
        draws = NoiseSeeds(batch.ids, SeedStream.QUERIES)

        def wrong(points: Tensor, rows: Tensor) -> Tensor:
            answers = _ask(plan, points, draws, rows).argmax(2)
            return (answers == batch.labels[rows, None]).double().mean(1) < 0.5

        return [rays(wrong, batch.images, eps=plan.eps, queries=plan.budget.queries // _draws(plan))]

    return craft


def _ask(plan: Plan, images: Tensor, draws: NoiseSeeds, rows: Tensor) -> Tensor:
    """(n, draws, classes) logits."""
    count = _draws(plan)
    ids = draws.next(rows, count)
    return plan.target.answer(images.repeat_interleave(count, 0), ids).logits.unflatten(0, (-1, count))
