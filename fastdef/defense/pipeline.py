"""From images in order to answers in order, through slots that finish in any order."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastdef.defense.requests import Request
from fastdef.runtime.scheduler import End, Start


@dataclass(frozen=True)
class Answer:
    """What became of one image.

    Attributes:
        logits: (classes,) float32, the log of the probabilities averaged over the outer loops.
        image: (C, H, W) float32, smoothed, of the first outer loop.
        steps: gradient steps, of all outer loops together.
        loss: the largest L_F that an outer loop ended with.
        converged: every outer loop got to the threshold.
        expired: the deadline passed before the smoothing was done.
        invalid: what came was no image; the logits are NaN.
    """

    logits: Tensor
    image: Tensor
    steps: int
    loss: float
    converged: bool
    expired: bool
    invalid: bool = False

    def as_invalid(self) -> "Answer":
        """The answer to what was no image."""
        nan = torch.full_like(self.logits, torch.nan)
        return replace(self, logits=nan, loss=math.nan, converged=False, invalid=True)


class Pipeline:
    """Feeds the scheduler, classifies what it lets out, and puts the answers back in order.

    At most ``window`` images are between the door and the exit, so a stream of any length takes bounded memory: an
    image that takes very long holds up the ones behind it, and then the door.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        *,
        noisy: Callable[[list[Request], int], Tensor],
        classify: Callable[[Tensor], Tensor],
        delta: float,
        outer_loops: int,
        batch: int,
        window: int,
    ) -> None:
        self._requests = iter(requests)
        self._noisy = noisy
        self._classify = classify
        self._delta = delta
        self._loops = outer_loops
        self._batch = batch
        self._window = window
        self._entered = 0
        self._left = 0
        self._ended: dict[int, list[End]] = {}
        self._unclassified: list[End] = []
        self._logits: dict[int, Tensor] = {}
        self._ready: deque[Answer] = deque()

    def starts(self) -> Iterator[Start | None]:
        """The scheduler's queue: every outer loop of an image is an entry of its own."""
        while True:
            while self._entered - self._left >= self._window:
                self._release()
                if self._entered - self._left >= self._window:
                    yield None
            chunk = self._chunk()
            if not chunk:
                return
            first = self._entered
            self._entered += len(chunk)
            for loop in range(self._loops):
                for offset, (request, image) in enumerate(zip(chunk, self._noisy(chunk, loop), strict=True)):
                    key = (first + offset) * self._loops + loop
                    yield Start(key, image, request.limit, request.deadline)

    def answers(self, ends: Iterable[End]) -> Iterator[Answer]:
        """The answers, in the order of the requests."""
        for end in ends:
            self._unclassified.append(end)
            if len(self._unclassified) >= self._batch:
                self._release()
            while self._ready:
                yield self._ready.popleft()
        self._release()
        yield from self._ready

    def _chunk(self) -> list[Request]:
        room = min(self._batch, self._window - (self._entered - self._left))
        chunk: list[Request] = []
        for request in self._requests:
            chunk.append(request)
            if len(chunk) == room:
                break
        return chunk

    def _release(self) -> None:
        """Classify what has been smoothed, and move to the exit what is next in order."""
        if self._unclassified:
            logits = self._classify(torch.stack([end.image for end in self._unclassified]))
            for end, row in zip(self._unclassified, log_softmax(logits.float(), dim=1), strict=True):
                self._logits[end.key] = row
                self._ended.setdefault(end.key // self._loops, []).append(end)
            self._unclassified.clear()
        while len(self._ended.get(self._left, ())) == self._loops:
            self._ready.append(self._answer(sorted(self._ended.pop(self._left), key=lambda end: end.key)))
            self._left += 1

    def _answer(self, ends: list[End]) -> Answer:
        logits = torch.stack([self._logits.pop(end.key) for end in ends])
        return Answer(
            logits=logits.logsumexp(dim=0) - math.log(self._loops) if self._loops > 1 else logits[0],
            image=ends[0].image,
            steps=sum(end.steps for end in ends),
            loss=max(end.loss for end in ends),
            converged=all(end.loss <= self._delta and not end.expired for end in ends),
            expired=any(end.expired for end in ends),
        )
