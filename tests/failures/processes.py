"""Commands in processes of their own, which may be killed for good: at a moment, or at a step on the disk."""

import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.failures import subprocess_runner

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([subprocess_runner.__name__])
_TOO_LONG = 1800  # seconds


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: of the process; negative for a signal.
        told: what it wrote to both streams.
        seconds: of the processor, from its first step on the disk to its end; 0 where it did not come to its end.
        steps: that it took on the disk; 0 where it did not come to its end.
    """

    status: int
    told: str
    seconds: float
    steps: int

    @property
    def killed(self) -> bool:
        """Whether it was, before its end."""
        return self.status == -signal.SIGKILL


def run(
    arguments: Sequence[object],
    folder: Path,
    *,
    after: float | None = None,
    at: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> Ended:
    """Run a command that works in ``folder``; SIGKILL it ``after`` seconds of work, or ``at`` a step on the disk.

    Seconds are of the processor, since other work on the machine does not change how many of them a command takes.
    ``prepare`` is called in its process before it begins.
    """
    receive, send = _CONTEXT.Pipe(duplex=False)
    read, write = _CONTEXT.Pipe(duplex=False)
    given = ([str(argument) for argument in arguments], folder, write, send, at, prepare)
    process = _CONTEXT.Process(target=subprocess_runner.command, args=given)
    process.start()
    send.close()
    write.close()
    with receive, read:
        first = _heard(receive)
        if after is not None and first is not None:
            while process.is_alive() and _worked(process.pid) < first[1] + after:
                time.sleep(0.001)
            process.kill()
        process.join(_TOO_LONG)
        process.kill()
        last = _heard(receive)
        told = b"".join(iter(lambda: os.read(read.fileno(), 1 << 16), b"")).decode()
    process.join()
    status = process.exitcode
    process.close()
    assert status is not None
    if first is None or last is None:
        return Ended(status, told, 0.0, 0)
    return Ended(status, told, last[1] - first[1], last[0])


def _heard(pipe: Connection) -> tuple[int, float] | None:
    """Steps and processor seconds, as the process tells them next; None where it has come to its end."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def _worked(process: int) -> float:
    """Processor seconds of a process, by its own clock, which is numbered as ``clock_getcpuclockid`` numbers it."""
    try:
        return time.clock_gettime((~process << 3) | 2)
    except OSError:  # it is no more
        return math.inf


def moments(count: int, whole: Ended, *, seed: int) -> Iterator[float]:
    """Seconds of work, spread by chance over that of a whole run; more than ``count``, for those that come too late."""
    chance = random.Random(seed)
    for number in range(3 * count):
        share = chance.random()
        print(f"moment {number} of seed {seed}: {share:.3f} of {whole.seconds:.2f} s")  # noqa: T201
        yield share * whole.seconds
