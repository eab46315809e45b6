"""Requests through a defense's slots, answered in order; with fewer slots where the memory does not hold them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdef.defense.pipeline import Answer, Pipeline
from fastdef.defense.requests import Request
from fastdef.runtime.forward import check_model, forward
from fastdef.runtime.scheduler import run

if TYPE_CHECKING:
    from fastdef.defense.active import ActiveDefense


def answers(defense: ActiveDefense, requests: Iterable[Request]) -> Iterator[Answer]:
    """Answer requests, all of images of one shape, in their order.

    Out of memory, the slots are halved and what has no answer yet begins anew: an answer does not depend on the slots,
    so nothing but time is lost.

    Raises:
        ValueError: for a model in training mode.
        torch.OutOfMemoryError: where a single slot is too much.
    """
    check_model(defense.model)  # before an image is pulled
    rest = iter(requests)
    waiting: deque[Request] = deque()  # asked for and not answered yet, in order, as answers are
    try:
        for answer in _once(defense, _remembered(rest, waiting)):
            yield answer if waiting.popleft().valid else answer.as_invalid()
        return
    except torch.OutOfMemoryError:
        if defense.slots == 1:
            raise
    defense.halve_slots()
    yield from answers(defense, chain(waiting, rest))


def _once(defense: ActiveDefense, requests: Iterator[Request]) -> Iterator[Answer]:
    first = next(requests, None)
    if first is None:
        return

    def noisy(chunk: list[Request], loop: int) -> Tensor:
        images = torch.stack([request.image for request in chunk])
        return images + defense.noise(torch.tensor([request.id for request in chunk]), loop, images)

    def classify(images: Tensor) -> Tensor:
        # In a batch, a row of the last matrix product is rounded by where it stands.
        parts = images.split(1 if defense.deterministic else len(images))
        return torch.cat([forward(defense.model, part) for part in parts])

    pipeline = Pipeline(
        chain([first], requests),
        noisy=noisy,
        classify=classify,
        delta=defense.delta,
        outer_loops=defense.outer_loops,
        batch=defense.slots,
        window=8 * defense.slots,
    )
    with defense.slots_for(first.image) as lease:
        yield from pipeline.answers(run(pipeline.starts(), lease, defense.sizes, defense.tally))


def _remembered(requests: Iterable[Request], waiting: deque[Request]) -> Iterator[Request]:
    for request in requests:
        waiting.append(request)
        yield request
