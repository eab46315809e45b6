"""In-flight batching for images that come one by one: whoever is done is answered, whatever came before it."""

from __future__ import annotations

import math
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastdef._validate import check_images
from fastdef.defense import ActiveDefense
from fastdef.runtime.forward import device_and_dtype, to_device
from fastdef.runtime.scheduler import End, Start, run


class Full(Exception):
    """The queue takes no more; ``seconds`` is when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full; try again in {seconds:.0f} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Reply:
    """What became of one image.

    Attributes:
        probabilities: (classes,) float32 on the CPU.
        steps: of the defense, all outer loops together.
        converged: every outer loop got to the threshold.
        expired: its deadline passed first.
        id: what its noise hung on.
        seconds: from its coming to its answer.
    """

    probabilities: Tensor
    steps: int
    converged: bool
    expired: bool
    id: int
    seconds: float


@dataclass(eq=False)
class _Job:
    image: Tensor
    id: int
    deadline: float | None
    came: float
    reply: Future[Reply] = field(default_factory=Future)
    ends: list[End] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


class Batcher:
    """Owns a defense and the thread that runs it.

    Images enter a slot as one falls empty and leave it when they are done, so one that takes very long holds up nobody.
    An image that is not finite, not in [0, 1] or of another shape is refused when it comes.

    Args:
        defense: compiled or not; nobody else should use it meanwhile.
        shape: (C, H, W) of the images.
        queue_size: images that may wait for a slot.
        longest: seconds that an image may take, its wait included, whatever it asks for.
    """

    def __init__(
        self, defense: ActiveDefense, shape: tuple[int, int, int], *, queue_size: int = 256, longest: float = 30.0
    ) -> None:
        self._defense = defense
        self._shape = shape
        self._longest = longest
        self._queue: queue.Queue[_Job | None] = queue.Queue(queue_size)
        self._open = True
        self._lock = threading.Lock()  # nobody may be let in while the door is being shut
        self._rate = 1.0  # images a second, of late
        self._thread = threading.Thread(target=self._work, name="fastdef-batcher")
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images without a slot."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        """Whether images are still answered."""
        return self._open and self._thread.is_alive()

    def warm(self) -> None:
        """Answer an image of nothing, which compiles what there is to compile."""
        self.submit(torch.zeros(self._shape)).result()

    def submit(self, image: Tensor, *, id: int | None = None, deadline: float | None = None) -> Future[Reply]:
        """Query for an answer.

        Args:
            image: (C, H, W) float32 in [0, 1].
            id: what its noise hangs on; drawn from the system if not given, so that nobody can predict it.
            deadline: seconds.

        Raises:
            ValueError: for an image that is not that, an id below 0, or a deadline that is not above 0.
            Full: where too many wait already.
            RuntimeError: after ``close``.
        """
        if image.shape != self._shape:
            raise ValueError(f"needs an image of shape {self._shape}, got {tuple(image.shape)}")
        check_images(image[None], where="the server")
        if id is not None and not 0 <= id < 1 << 62:
            raise ValueError(f"needs an id from 0 up, of 62 bits, got {id}")
        if deadline is not None and not 0 < deadline < math.inf:
            raise ValueError(f"needs a deadline above 0, in seconds, got {deadline}")
        now = time.monotonic()
        until = now + min(self._longest, deadline or self._longest)
        job = _Job(image, secrets.randbits(62) if id is None else id, until, now)
        with self._lock:
            if not self._open:
                raise RuntimeError("the server is shutting down")
            try:
                self._queue.put_nowait(job)
            except queue.Full:
                raise Full(max(1.0, self._queue.maxsize / self._rate)) from None
        return job.reply

    def close(self) -> None:
        """Take nothing more, answer what was accepted, and end."""
        with self._lock:
            first, self._open = self._open, False
        if first:
            self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            flight = _Flight(self._defense, self._queue, [job])
            while (left := self._fly(flight)) is not None:
                flight = left
            self._rate = 0.9 * self._rate + 0.1 * flight.rate
            if flight.closing:
                return

    def _fly(self, flight: _Flight) -> _Flight | None:
        """Run a flight to its end, or out of memory return one with fewer slots for those who are left."""
        try:
            flight.run()
        except torch.OutOfMemoryError as error:
            if self._defense.slots > 1:
                self._defense.halve_slots()
                return _Flight(self._defense, self._queue, flight.unanswered(), closing=flight.closing)
            flight.fail(error)
        except Exception as error:  # whatever it is, nobody may wait for ever
            flight.fail(error)
        return None


class _Flight:
    """From the first image after a pause to the next moment without any."""

    def __init__(
        self, defense: ActiveDefense, source: queue.Queue[_Job | None], first: list[_Job], *, closing: bool = False
    ) -> None:
        self.closing = closing
        self._defense = defense
        self._source = source
        self._first = deque(first)
        self._like = torch.zeros_like(first[0].image)
        self._jobs: dict[int, _Job] = {}  # by the number of their coming; key = number * loops + loop
        self._ended: list[End] = []
        self._began = time.monotonic()
        self._answered = 0

    @property
    def rate(self) -> float:
        """Images a second."""
        return self._answered / max(1e-3, time.monotonic() - self._began)

    def run(self) -> None:
        """Answer until there is nobody left."""
        defense = self._defense
        with defense.slots_for(self._like) as lease:
            for end in run(self._starts(), lease, defense.sizes, defense.tally):
                self._ended.append(end)
        self._classify()

    def unanswered(self) -> list[_Job]:
        """Those who were let in and have no answer yet, as they came."""
        jobs = [*self._jobs.values(), *self._first]
        for job in jobs:
            job.ends.clear()
            job.logits.clear()
        return jobs

    def fail(self, error: Exception) -> None:
        """Tell all who have no answer yet why there is none."""
        for job in self.unanswered():
            job.reply.set_exception(error)

    def _starts(self) -> Iterator[Start | None]:
        number, loops = 0, self._defense.outer_loops
        while True:
            self._classify()  # whoever has left since the last look
            job = self._next()
            if job is None:
                yield None
                continue
            self._jobs[number] = job
            image = to_device(job.image, device_and_dtype(self._defense.model)[0])
            for loop in range(loops):
                noise = self._defense.noise(torch.tensor([job.id]), loop, image[None])[0]
                yield Start(number * loops + loop, image + noise, self._defense.max_steps, job.deadline)
            number += 1

    def _next(self) -> _Job | None:
        if self._first:
            return self._first.popleft()
        if self.closing:
            return None
        try:
            job = self._source.get_nowait()
        except queue.Empty:
            return None
        self.closing = job is None
        return job

    def _classify(self) -> None:
        if not self._ended:
            return
        ended, self._ended = self._ended, []
        with torch.no_grad():
            logits = self._defense.model(torch.stack([end.image for end in ended]))
        touched: dict[int, _Job] = {}
        loops = self._defense.outer_loops
        for end, row in zip(ended, log_softmax(logits.float(), dim=1).cpu(), strict=True):
            job = touched[end.key // loops] = self._jobs[end.key // loops]
            job.ends.append(end)
            job.logits.append(row)
        for number, job in touched.items():
            if len(job.ends) == loops:
                del self._jobs[number]
                self._answered += 1
                job.reply.set_result(self._reply(job))

    def _reply(self, job: _Job) -> Reply:
        expired = any(end.expired for end in job.ends)
        return Reply(
            probabilities=torch.stack(job.logits).exp().mean(0),
            steps=sum(end.steps for end in job.ends),
            converged=not expired and all(end.loss <= self._defense.delta for end in job.ends),
            expired=expired,
            id=job.id,
            seconds=time.monotonic() - job.came,
        )
