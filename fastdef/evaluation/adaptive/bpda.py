"""Gradients through a defense: BPDA over the loop, expectation over the noise (Athalye et al., 2018).

The purification's gradient is taken for the identity's. For Active Defense in eval mode this is no approximation where
the attacker's loop is as long as the defense's: stem, first group and L_F are piecewise linear, so that the second
derivative, which unrolling would add, is zero (a test).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastdef.attacks import Goal, Query, QueryResult, white_box
from fastdef.defense import ActiveDefense
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds
from fastdef.evaluation.adaptive.target import Target
from fastdef.runtime import MaskedStep

Path = Callable[[Tensor, Tensor], Iterator[Tensor]]  # noisy copies and their ids -> points to take gradients at


def bpda(target: Target, goal: Goal, draws: NoiseSeeds, *, eot: int, steps: int | None = None) -> Query:
    """Mean over ``eot`` draws of the gradient at the purified image, the loop cut after ``steps``.

    Raises:
        ValueError: for a target without a classifier.
    """

    def end(images: Tensor, ids: Tensor) -> Iterator[Tensor]:
        yield images if target.purify is None else target.purify(images, ids, steps)

    return _along(target, goal, draws, eot if target.random else 1, end)


def iterates(target: Target, goal: Goal, draws: NoiseSeeds, *, eot: int, steps: int) -> Query:
    """The same, with the gradient averaged over the noised image and every step of the loop up to ``steps``.

    Raises:
        ValueError: for a target that is no Active Defense.
    """
    if target.defense is None:
        raise ValueError("gradients along the iterates need an Active Defense")
    return _along(target, goal, draws, eot, trajectory(target.defense, steps))


def trajectory(defense: ActiveDefense, steps: int) -> Path:
    """To the noised images, and to the images after each of the first ``steps`` steps; one that is done stays."""
    traced: list[MaskedStep] = []  # at the first call, for every batch size

    def path(images: Tensor, ids: Tensor) -> Iterator[Tensor]:
        t = defense.noised(images, ids=ids)
        if not traced:
            traced.append(defense.masked_step(t))
        return _descend(traced[0], t, delta=defense.delta, steps=steps)

    return path


@torch.no_grad()
def _descend(step: MaskedStep, t: Tensor, *, delta: float, steps: int) -> Iterator[Tensor]:
    taken = torch.zeros(len(t), dtype=torch.int32, device=t.device)
    limits, threshold = torch.full_like(taken, steps), t.new_tensor(delta)
    yield t
    for _ in range(steps):
        t, taken, _, _ = step(t, taken, limits, threshold)
        yield t


def _along(target: Target, goal: Goal, draws: NoiseSeeds, eot: int, path: Path) -> Query:
    if target.classifier is None:
        raise ValueError("a gradient needs a target with a classifier, got an opaque one")
    classify = in_parts(white_box(target.classifier, goal), target.batch)

    def ask(x: Tensor, rows: Tensor) -> QueryResult:
        ids = draws.next(rows, eot)
        copies, owners = x.detach().repeat_interleave(eot, 0), rows.repeat_interleave(eot)
        total, count = torch.zeros_like(copies), 0
        for point in path(copies, ids):
            query = classify(point, owners)
            total, count = total + query.gradient, count + 1
        return mean_over_draws(QueryResult(query.loss, total / count, query.right), eot)

    return ask


def in_parts(ask: Query, size: int) -> Query:
    """The same, ``size`` points at once: what bounds the memory of a gradient."""

    def parts(x: Tensor, rows: Tensor) -> QueryResult:
        results = [ask(*part) for part in zip(x.split(size), rows.split(size), strict=True)]
        return QueryResult(*(torch.cat(values) for values in zip(*results, strict=True)))

    return parts


def mean_over_draws(query: QueryResult, eot: int) -> QueryResult:
    """(n * eot, ...) to (n, ...)."""
    return QueryResult(*(value.unflatten(0, (-1, eot)).mean(1) for value in query))
