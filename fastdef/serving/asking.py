"""From an HTTP request to the worker and back, for as long as the client is there."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from torch import Tensor

from fastdef.serving.bodies import Refusal
from fastdef.serving.metrics import Metrics
from fastdef.serving.worker import Closed, Full, Reply, Worker


@dataclass(frozen=True)
class Service:
    """What every endpoint is given.

    Attributes:
        worker: answers.
        metrics: counts.
        name: of the model.
        classes: their names.
        shape: (C, H, W) of the images.
        max_bytes: of a request's body.
        body_seconds: that a body may take to come.
        replay: whether a request may choose its ``id``.
    """

    worker: Worker
    metrics: Metrics
    name: str
    classes: Sequence[str]
    shape: tuple[int, int, int]
    max_bytes: int
    body_seconds: float
    replay: bool

    async def ask(
        self, request: Request, images: Sequence[Tensor], *, id: int | None = None, deadline: float | None = None
    ) -> list[Reply]:
        """The replies to a request's images; all are withdrawn when its client leaves.

        Raises:
            Refusal: 400 for no image, more than can ever wait, or a deadline that is none; 503 where there is no room,
                the server ends or a smoothing never began; 500 where the defense failed; 499 where the client left.
        """
        if not images:
            raise Refusal(400, "needs at least one image, got none")
        if len(images) > self.worker.capacity:
            raise Refusal(400, f"needs at most {self.worker.capacity} images, got {len(images)}")
        if deadline == math.inf:
            raise Refusal(400, "needs a deadline that comes, in seconds, got inf")
        answers: list[asyncio.Future[Reply]] = []
        try:
            for image in images:  # one by one, so that those before a refusal are withdrawn
                answers.append(self._submit(image, id, deadline))  # noqa: PERF401
            replies = await _unless_gone(request, answers)
        except _Gone as error:
            self.metrics.withdrawn.inc(len(answers))
            raise Refusal(499, "the client left") from error
        finally:
            for answer in answers:
                answer.cancel()  # nothing to those that have come
        for reply in replies:
            self.metrics.count(reply)
        _check(replies)
        return replies

    def _submit(self, image: Tensor, id: int | None, deadline: float | None) -> "asyncio.Future[Reply]":
        try:
            return asyncio.wrap_future(self.worker.submit(image, id=id, deadline=deadline))
        except Full as error:
            raise Refusal(503, str(error), {"Retry-After": str(math.ceil(error.seconds))}) from error
        except ValueError as error:
            raise Refusal(400, " ".join(str(error).split())) from error
        except Closed as error:
            raise _closed(error) from error

    def describe(self, reply: Reply) -> dict[str, Any]:
        """A reply, as JSON."""
        probability, label = reply.probabilities.max(0)
        described = {
            "class": self.classes[int(label)],
            "label": int(label),
            "probability": float(probability),
            "probabilities": reply.probabilities.tolist(),
            "steps": reply.steps,
            "converged": reply.converged,
            "expired": reply.expired,
        }
        return {**described, "id": reply.id} if self.replay else described


class _Gone(Exception):
    """The client left."""


async def _unless_gone(request: Request, answers: "list[asyncio.Future[Reply]]") -> list[Reply]:
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        for answer in answers:
            either: set[asyncio.Future[Any]] = {gone, answer}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _Gone
        return [answer.result() for answer in answers]
    except Closed as error:
        raise _closed(error) from error
    except (_Gone, asyncio.CancelledError):
        raise
    except Exception as error:  # whatever it was, the worker has logged it
        raise Refusal(500, f"no answer: {type(error).__name__}") from error
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    """Returns when the client is gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _closed(error: Closed) -> Refusal:
    return Refusal(503, str(error), {"Retry-After": "1"})


def _check(replies: list[Reply]) -> None:
    if not all(reply.started for reply in replies):
        raise Refusal(503, "the deadline passed before the smoothing began; try again", {"Retry-After": "1"})
    if not all(reply.probabilities.isfinite().all() for reply in replies):
        raise Refusal(500, "no answer: the classifier gave probabilities that are not finite")
