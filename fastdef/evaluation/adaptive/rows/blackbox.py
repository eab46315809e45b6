"""Row 6: attacks that see answers and nothing else, by scores (Square) and by decisions (RayS)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdef.attacks import rays
from fastdef.evaluation.adaptive import autoattack
from fastdef.evaluation.adaptive.attack_case import Attack, AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import by_label


def cases(plan: Plan) -> Iterator[AttackCase | NotRun]:
    """Both, with the same number of queries."""
    draws = plan.budget.query_draws if plan.target.random else 1
    for name, attack in {"Square": Square, "RayS": RayS}.items():
        craft = attack(plan, plan.budget.queries, draws)
        yield AttackCase(6, name, craft, by_label(plan.target), plan.eps, plan.expensive_images, plan.noise_samples)


@dataclass(frozen=True)
class _BlackBox(Attack):
    """An attack by answers.

    Attributes:
        queries: answers that an image may take.
        queries_a_decision: of them, for one decision: a random defense is asked several times, or one lucky answer
            would end the attack.
    """

    queries: int
    queries_a_decision: int

    @property
    def decisions(self) -> int:
        """That an image may take."""
        return self.queries // self.queries_a_decision

    def ask(self, images: Tensor, draws: NoiseSeeds, rows: Tensor) -> Tensor:
        """(n, draws, classes) logits."""
        count = self.queries_a_decision
        ids = draws.next(rows, count)
        return self.plan.target.answer(images.repeat_interleave(count, 0), ids).logits.unflatten(0, (-1, count))


class Square(_BlackBox):
    """By scores (Andriushchenko et al., 2020)."""

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """Its best points."""
        draws = NoiseSeeds(batch.ids, SeedStream.QUERIES)

        def predict(images: Tensor) -> Tensor:  # Square does not say whose images they are: each its own noise will do
            rows = torch.arange(len(images)) % len(batch.ids)
            return self.ask(images, draws, rows).log_softmax(2).mean(1)

        eps, queries, seed = self.plan.eps, self.decisions, batch.seed
        return [autoattack.square(predict, batch.images, batch.labels, eps=eps, queries=queries, seed=seed)]


class RayS(_BlackBox):
    """By decisions (Chen & Gu, 2020)."""

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """Its best points."""
        draws = NoiseSeeds(batch.ids, SeedStream.QUERIES)

        def wrong(points: Tensor, rows: Tensor) -> Tensor:
            answers = self.ask(points, draws, rows).argmax(2)
            return (answers == batch.labels[rows, None]).double().mean(1) < 0.5

        return [rays(wrong, batch.images, eps=self.plan.eps, queries=self.decisions)]
