"""Requests in, results out: the one way of an image through the defense."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastdef.runtime.pool import LoopRequest, LoopResult, Pool, Stats
from fastdef.runtime.requests import Request, Result
from fastdef.runtime.scheduler import Scheduler


@dataclass(frozen=True)
class Program:
    """What a session does with an image.

    Attributes:
        place: puts images where the slots are.
        noise: (N,) ids, outer loop, (N, C, H, W) images to (N, C, H, W) noise.
        classify: (N, C, H, W) smoothed images to (N, classes) logits; None classifies nothing.
        next_id: draws the noise id of a request that has none.
        delta: threshold of L_F.
        outer_loops: R.
        max_steps: of an outer loop.
        classify_batch: smoothed images that are classified together, where as many are to come.
        quantum: see :class:`Scheduler`.
    """

    place: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor, int, Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None
    next_id: Callable[[], int]
    delta: float
    outer_loops: int
    max_steps: int
    classify_batch: int
    quantum: int | None = None


@dataclass(eq=False)
class _Work:
    """A request under way: what its outer loops have ended with so far."""

    id: int
    request: Request
    noise_id: int
    ends: dict[int, tuple[LoopResult, Tensor]]


class Session:
    """Images of one shape on their way through the defense. A context manager; not for two threads at once.

    Out of memory, the slots are halved and what has no result begins anew: a result does not depend on the slots, so
    nothing but time is lost. Slots are held while a request is unfinished, and go back when none is.

    Args:
        pool: of the slots.
        program: what is done with an image.
        stats: counts the work, for benchmarks.
    """

    def __init__(self, pool: Pool, program: Program, stats: Stats) -> None:
        self._pool = pool
        self._program = program
        self._stats = stats
        self._added = 0
        self._works: dict[int, _Work] = {}  # every unfinished one, as they came
        self._refusing = math.inf  # ``time.monotonic()`` from which one in the queue gets no slot
        self._classes: int | None = 0 if program.classify is None else None
        self._queue: deque[_Work]  # without noise yet
        self._smoothed: list[LoopResult]  # not classified yet
        self._begin()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def unfinished(self) -> int:
        """Requests without a result."""
        return len(self._works)

    @property
    def has_capacity(self) -> bool:
        """Whether a request more would have a slot in the next step."""
        return len(self._queue) * self._program.outer_loops < self._scheduler.room

    @property
    def chunk(self) -> int:
        """Requests that are noised together: as many as there are slots."""
        return self._pool.sizes[-1]

    def add(self, request: Request) -> int:
        """Take a request; its number, by which its result is known."""
        number, self._added = self._added, self._added + 1
        noise_id = self._program.next_id() if request.noise_id is None else request.noise_id
        work = self._works[number] = _Work(number, request, noise_id, {})
        self._queue.append(work)
        self._refusing = min(self._refusing, self._until(work))
        return number

    def cancel(self, request_id: int) -> None:
        """Withdraw a request, wherever it is; no result comes, and one that is done already stays so."""
        work = self._works.pop(request_id, None)
        if work is None:
            return
        if work in self._queue:
            self._queue.remove(work)
        loops = self._program.outer_loops
        self._scheduler.remove({request_id * loops + loop for loop in range(loops)})
        self._smoothed[:] = [end for end in self._smoothed if end.id // loops != request_id]
        if not self._works:
            self.close()

    def step(self) -> list[Result]:
        """One look at the device; the results of the requests that have ended.

        Raises:
            torch.OutOfMemoryError: where a single slot is too much.
        """
        try:
            return self._step()
        except torch.OutOfMemoryError:
            self._begin()
            if self.chunk == 1:
                raise
        self._pool.halve()  # out here, where no traceback holds the memory
        return []

    def close(self) -> None:
        """Drop what is unfinished, and give the slots back."""
        self._works.clear()
        self._scheduler.release()
        self._begin()

    def _begin(self) -> None:
        """With empty slots, and every unfinished request in the queue."""
        self._scheduler = Scheduler(self._pool, self._program.delta, self._stats, quantum=self._program.quantum)
        self._smoothed = []
        self._queue = deque(self._works.values())
        for work in self._queue:
            work.ends.clear()

    def _step(self) -> list[Result]:
        results = self._refused()
        while self._queue and self._scheduler.room > 0:
            self._feed([self._queue.popleft() for _ in range(min(self.chunk, len(self._queue)))])
        self._smoothed += self._scheduler.advance()
        if self._smoothed and len(self._smoothed) >= min(self._program.classify_batch, len(self._scheduler)):
            results += self._finish()
        if not self._works:
            self._scheduler.release()
        return results

    def _refused(self) -> list[Result]:
        """The results of those in the queue that get no slot: no images, and those whose deadline has passed."""
        now = time.monotonic()
        if now <= self._refusing:
            return []
        late = [work for work in self._queue if self._until(work) < now]
        for work in late:
            self._queue.remove(work)
            del self._works[work.id]
        self._refusing = min((self._until(work) for work in self._queue), default=math.inf)
        return [self._without_slot(work) for work in late]

    @staticmethod
    def _until(work: _Work) -> float:
        request = work.request
        return -math.inf if not request.valid else math.inf if request.deadline is None else request.deadline

    def _feed(self, works: list[_Work]) -> None:
        """Add noise to a chunk of requests, and hand the scheduler every outer loop as an entry of its own."""
        program = self._program
        images = program.place(torch.stack([work.request.image for work in works]))
        ids = torch.tensor([work.noise_id for work in works])
        for loop in range(program.outer_loops):
            noise = self._noise([work.request.noise for work in works], ids, loop, images)
            for work, image in zip(works, images + noise, strict=True):
                request, id = work.request, work.id * program.outer_loops + loop
                limit = program.max_steps if request.max_steps is None else request.max_steps
                self._scheduler.add(LoopRequest(id, image, limit, request.deadline))

    def _noise(self, own: list[Tensor | None], ids: Tensor, loop: int, images: Tensor) -> Tensor:
        """(N, C, H, W) noise: a request's own, or the program's where it has none."""
        given = [noise for noise in own if noise is not None]
        if len(given) == len(own):
            return self._program.place(torch.stack(given))
        drawn = self._program.noise(ids, loop, images)
        rows = [row if noise is None else self._program.place(noise) for row, noise in zip(drawn, own, strict=True)]
        return torch.stack(rows) if given else drawn

    def _finish(self) -> list[Result]:
        """Classify what has been smoothed; the results of the requests whose outer loops have all ended."""
        ends, self._smoothed = self._smoothed, []
        results = []
        for end, row in zip(ends, self._rows(ends), strict=True):
            number, loop = divmod(end.id, self._program.outer_loops)
            work = self._works[number]
            work.ends[loop] = end, row
            if len(work.ends) == self._program.outer_loops:
                del self._works[number]
                results.append(self._result(work))
        return results

    def _rows(self, ends: list[LoopResult]) -> list[Tensor]:
        """(classes,) log-probabilities of each; NaN of those that never had a slot."""
        started = [end for end in ends if end.started]
        logits = iter(self._classified([end.image for end in started])) if started else iter(())
        return [next(logits) if end.started else self._nan(end.image) for end in ends]

    def _classified(self, images: list[Tensor]) -> Tensor:
        """(n, classes) log-probabilities."""
        if self._program.classify is None:
            return images[0].new_empty((len(images), 0), dtype=torch.float32)
        rows = log_softmax(self._program.classify(torch.stack(images)).float(), dim=1)
        self._classes = rows.shape[1]
        return rows

    def _nan(self, image: Tensor) -> Tensor:
        if self._classes is None:  # nothing was classified yet
            self._classified([image])
        return torch.full((self._classes or 0,), torch.nan, device=image.device)

    def _without_slot(self, work: _Work) -> Result:
        image = self._program.place(work.request.image[None])[0]
        end = LoopResult(work.id, image, steps=0, loss=math.nan, expired=work.request.valid, started=False)
        work.ends.update(dict.fromkeys(range(self._program.outer_loops), (end, self._nan(image))))
        return self._result(work)

    def _result(self, work: _Work) -> Result:
        pairs = [work.ends[loop] for loop in range(self._program.outer_loops)]
        ends = [end for end, _ in pairs]
        rows = [row for end, row in pairs if end.started] or [pairs[0][1]]
        losses = [end.loss for end in ends if end.started]
        return Result(
            request_id=work.id,
            logits=torch.stack(rows).logsumexp(dim=0) - math.log(len(rows)) if len(rows) > 1 else rows[0],
            image=ends[0].image,
            steps=sum(end.steps for end in ends),
            loss=max(losses, default=math.nan),
            converged=all(end.loss <= self._program.delta and not end.expired for end in ends),
            expired=any(end.expired for end in ends),
            started=bool(losses),
            invalid=not work.request.valid,
            noise_id=work.noise_id,
        )
