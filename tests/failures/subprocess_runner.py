"""What runs in a forked process: the command, watched as it goes about its folder."""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

# Imported once, before the fork: these, and what they import when they are first used, take seconds.
import jinja2  # noqa: F401
import onnxscript  # noqa: F401
import PIL.Image  # noqa: F401
import torch
import torch._dynamo

from fastdef.cli import main

_STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # of Python's audit events, each before it happens
_CAPABILITIES_3 = 0x20080522


class Watch:
    """An audit hook: counts the steps that the command takes on the disk, and ends it just before one of them.

    Args:
        folder: where they count.
        pipe: is told of the first one, as the moment at which the work has begun.
        end_at: the step that is not taken; the process kills itself there with SIGKILL.
    """

    def __init__(self, folder: Path, pipe: Connection, end_at: int | None) -> None:
        self.steps = 0
        self._folder = str(folder)
        self._pipe = pipe
        self._end_at = end_at

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        """Python's call, at every event there is."""
        if event not in _STEPS or not isinstance(arguments[0], str | os.PathLike):
            return
        if not os.fspath(arguments[0]).startswith(self._folder):
            return
        if self.steps == self._end_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1
        if self.steps == 1:
            self._pipe.send((self.steps, time.process_time()))


def command(
    arguments: Sequence[str],
    folder: Path,
    told: Connection,
    pipe: Connection,
    end_at: int | None,
    prepare: Callable[[], None] | None,
) -> None:
    """Run ``fastdef`` with these arguments, once ``prepare`` was called; what it says goes to ``told``."""
    for stream in (1, 2):
        os.dup2(told.fileno(), stream)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    watch = Watch(folder, pipe, end_at)
    sys.addaudithook(watch)
    sys.argv = ["fastdef", *arguments]
    try:
        main()
    finally:
        pipe.send((watch.steps, time.process_time()))


def small_files(size: int) -> None:
    """No file grows beyond so many bytes: the kernel refuses the rest in the middle of a file, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def without_powers() -> None:
    """Root is held to the bits of files and folders like anybody else; another user loses nothing."""
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
