"""The thread that owns a defense: images come from any thread, and whoever is done is answered."""

from __future__ import annotations

import atexit
import logging
import math
import queue
import secrets
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdef._validate import check_images
from fastdef.defense import ActiveDefense, Request, Result, Session

_LOG = logging.getLogger(__name__)
QUANTUM = 32  # looks: more than most images need, so that few make room for others


class Full(Exception):
    """No more images are taken; ``seconds`` is when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full; try again in {seconds:.0f} s")
        self.seconds = seconds


class Closed(RuntimeError):
    """The worker takes nothing more, or ended before there was an answer."""


@dataclass(frozen=True)
class Reply:
    """What became of one image.

    Attributes:
        probabilities: (classes,) float32 on the CPU; NaN where the smoothing had not ``started``.
        steps: of the defense, all outer loops together.
        converged: every outer loop got to the threshold.
        expired: its deadline passed first.
        started: its smoothing began before the deadline; if not, this is no answer of a defended classifier.
        id: what its noise hung on.
        seconds: from its coming to its answer.
        smoothed: (C, H, W) float32 on the device, of the first outer loop. It would help an attacker.
    """

    probabilities: Tensor
    steps: int
    converged: bool
    expired: bool
    started: bool
    id: int
    seconds: float
    smoothed: Tensor


@dataclass(eq=False)
class _Job:
    request: Request
    came: float
    number: int | None = None  # of its request, once the session has it
    reply: Future[Reply] = field(default_factory=Future)


class Worker:
    """Owns a defense and the thread that runs it. A context manager.

    Images enter a slot as one falls empty and leave it when they are done; one that has had a slot for ``QUANTUM``
    looks longer than another waits makes room for it, so images that take very long hold up nobody. A future that is
    cancelled withdraws its image from the queue or its slot. The thread does not keep a program from ending.

    Args:
        defense: compiled or not; nobody else should use it meanwhile.
        shape: (C, H, W) of the images.
        queue_size: images that are taken beyond those in slots.
        longest: seconds that an image may take, its wait included, whatever it asks for.
    """

    def __init__(
        self, defense: ActiveDefense, shape: tuple[int, int, int], *, queue_size: int = 256, longest: float = 30.0
    ) -> None:
        self._defense = defense
        self._shape = shape
        self._queue_size = queue_size
        self._longest = longest
        self._mail: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # a job to do or, cancelled, to drop
        self._jobs: dict[int, _Job] = {}  # by request; of the thread alone
        self._lock = threading.Lock()
        self._unanswered = 0
        self._open = self._graceful = True
        self._seconds = 0.1  # that an image took, of late
        self._thread = threading.Thread(target=self._work, name="fastdef-worker", daemon=True)
        self._thread.start()
        atexit.register(self._abandon)  # a thread that computes while Python ends may crash

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Images beyond those that have a slot."""
        return max(0, self._unanswered - self._defense.slots)

    @property
    def capacity(self) -> int:
        """Images that are taken before one is answered."""
        return self._defense.slots + self._queue_size

    @property
    def alive(self) -> bool:
        """Whether images are still answered."""
        return self._open and self._thread.is_alive()

    def warm(self) -> None:
        """Answer an image of nothing, which compiles what there is to compile."""
        self.submit(torch.zeros(self._shape), deadline=math.inf).result()

    def submit(self, image: Tensor, *, id: int | None = None, deadline: float | None = None) -> Future[Reply]:
        """Ask for an answer; from any thread.

        Args:
            image: (C, H, W) float32 in [0, 1].
            id: what its noise hangs on; drawn from the system if not given, so that nobody can predict it.
            deadline: seconds from now; ``longest`` if not given, and at most that unless it is infinite.

        Raises:
            ValueError: for an image that is not that, an id below 0, or a deadline that is not above 0.
            Full: where too many wait already.
            Closed: after ``close``.
        """
        if image.shape != self._shape:
            raise ValueError(f"needs an image of shape {self._shape}, got {tuple(image.shape)}")
        (image,) = check_images(image[None], where="the server")
        if id is not None and not 0 <= id < 1 << 62:
            raise ValueError(f"needs an id from 0 up, of 62 bits, got {id}")
        if deadline is not None and not deadline > 0:
            raise ValueError(f"needs a deadline above 0, in seconds, got {deadline}")
        now = time.monotonic()
        until = None if deadline == math.inf else now + min(self._longest, deadline or self._longest)
        job = _Job(Request(image, secrets.randbits(62) if id is None else id, deadline=until), now)
        self._admit(job)
        job.reply.add_done_callback(lambda reply: self._forget(job))
        return job.reply

    def close(self, grace: float | None = None) -> None:
        """Take nothing more, answer what was accepted for at most ``grace`` seconds, fail the rest, and end."""
        with self._lock:
            self._open = False
            self._mail.put(None)
        self._thread.join(grace)
        self._graceful = False
        self._thread.join()
        atexit.unregister(self._abandon)

    def _abandon(self) -> None:
        self._open = self._graceful = False
        self._mail.put(None)
        self._thread.join(30.0)  # a first step imports for seconds, for more where the machine is busy

    def _admit(self, job: _Job) -> None:
        with self._lock:  # nobody may be let in while the door is being shut
            if not self._open:
                raise Closed("the server is shutting down")
            if self._unanswered >= self.capacity:
                raise Full(max(1.0, self._seconds))
            self._unanswered += 1
            self._mail.put(job)

    def _forget(self, job: _Job) -> None:
        """One answer fewer to give; one that was cancelled goes to the thread."""
        with self._lock:
            self._unanswered -= 1
        if job.reply.cancelled():
            self._mail.put(job)

    def _work(self) -> None:
        session = self._defense.session(classify_batch=1, quantum=QUANTUM)
        while self._open or (self._graceful and (session.unfinished or not self._mail.empty())):
            self._look(session)
        self._fail(Closed("the server was shut down before there was an answer"))

    def _look(self, session: Session) -> None:
        try:
            self._advance(session)
        except Exception as error:  # whatever it is, nobody may wait for ever, and the next may fare better
            _LOG.exception("the defense failed; whoever waited for it has no answer")
            session.close()
            self._fail(error)

    def _advance(self, session: Session) -> None:
        for job in self._arrivals(wait=not session.unfinished):
            if job.reply.cancelled():
                self._withdraw(session, job)
            else:
                job.number = session.add(job.request)
                self._jobs[job.number] = job
        for result in session.step():
            self._answer(self._jobs[result.request_id], result)
            del self._jobs[result.request_id]

    def _arrivals(self, *, wait: bool) -> list[_Job]:
        mail = [self._mail.get()] if wait else []
        while not self._mail.empty():
            mail.append(self._mail.get())
        return [job for job in mail if job is not None]

    def _withdraw(self, session: Session, job: _Job) -> None:
        if job.number is not None and self._jobs.pop(job.number, None) is not None:
            session.cancel(job.number)

    def _fail(self, error: Exception) -> None:
        jobs, self._jobs = dict.fromkeys([*self._jobs.values(), *self._arrivals(wait=False)]), {}
        for job in jobs:
            if job.reply.set_running_or_notify_cancel():
                job.reply.set_exception(error)

    def _answer(self, job: _Job, result: Result) -> None:
        seconds = time.monotonic() - job.came
        self._seconds = 0.9 * self._seconds + 0.1 * seconds
        if job.reply.set_running_or_notify_cancel():  # else it was cancelled a moment ago
            job.reply.set_result(
                Reply(
                    probabilities=result.logits.exp().cpu(),
                    steps=result.steps,
                    converged=result.converged,
                    expired=result.expired,
                    started=result.started,
                    id=result.noise_id,
                    seconds=seconds,
                    smoothed=result.image,
                )
            )
