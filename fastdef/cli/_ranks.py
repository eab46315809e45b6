"""The command as one of several processes that ``torchrun`` started: one voice for all, and an end that says why."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fastdef import _cluster, distributed

LOST = "this run has lost one of its processes, or was told to end; a command with --resume goes on from what is kept"
_PATIENCE = timedelta(seconds=10)  # that the others have with the first, which may still be printing
_LONGEST = timedelta(days=1)  # ranks of an evaluation may end hours apart; a lost one is noticed by torchrun

_voice: Any = None  # the store where the first to tell how it ends is noted; None for a process alone


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, if ``torchrun`` started this one; of several only the first prints.

    CUDA's tensors go by NCCL and others by gloo; a process takes the GPU of its local rank.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    global _voice
    store, rank, size = next(rendezvous("env://"))
    _voice = store.clone()  # another connection: the first one may be waiting when this is needed
    _tell_when_terminated()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(dist.get_node_local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_LONGEST)
    try:
        with _silent() if rank else contextlib.nullcontext():
            yield
    except SystemExit as ended:  # which is how a command ends, well or not
        _end_after_first(rank)
        if not ended.code:
            dist.destroy_process_group()
        raise


def tell(reason: str, write: Callable[[str], object]) -> None:
    """Write one line on how the run ends, unless another process tells it; whoever does has written on return."""
    line = f"fastdef: {reason}\n"
    if _voice is None:
        write(line)
        return
    with contextlib.suppress(RuntimeError):  # whoever keeps the store may be gone
        if not _speaks_first():
            # A process that ends has the others killed, and the first may still be about to write.
            _voice.wait(["written"], _PATIENCE)
            return
        write(line)
        _voice.set("written", "")


def _speaks_first() -> bool:
    try:
        return _voice.add("ended", 1) == 1
    except RuntimeError:  # whoever keeps the store is gone
        return True


def check_own_device(device: torch.device) -> torch.device:
    """The device of this process, where there are several.

    Raises:
        ValueError: for a GPU by number, or where there is none left for this process.
    """
    if distributed.world_size() == 1 or device.type != "cuda":
        return device
    place, there = dist.get_node_local_rank(), torch.cuda.device_count()
    if device.index is not None or place >= there:
        raise ValueError(f"--device needs cpu, or cuda and a GPU for each process, got {device} and {there} of them")
    return torch.device("cuda", place)


@contextmanager
def _silent() -> Iterator[None]:
    with Path(os.devnull).open("w") as void, contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
        yield


def _end_after_first(rank: int) -> None:
    """A process that ends with a status other than 0 has the others killed: the first has said all it has to before."""
    with contextlib.suppress(RuntimeError):
        if rank == 0:
            _speaks_first()
            _voice.set("written", "")
            _voice.set("ended", "")
        else:
            _voice.wait(["ended"], _PATIENCE)


def _tell_when_terminated() -> None:
    """On SIGTERM, which ``torchrun`` sends where another process failed: the line, and an end at once.

    The main thread may be waiting inside a library for the process that is gone, where no signal handler of Python's
    runs. So a thread waits for the number that the interpreter writes on every signal.
    """
    numbers, written = socket.socketpair()
    written.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with written:  # which also keeps it open
            while signal.SIGTERM not in numbers.recv(64):
                pass
            tell(LOST, lambda line: os.write(2, line.encode()))  # past what may be silenced
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def on_replicas(replicas: int, device: str) -> NoReturn:
    """Run this command, as it was typed but for ``--replicas``, on so many replicas of Ray, and end as it does."""
    arguments = list(sys.argv[1:])
    place = next(at for at, word in enumerate(arguments) if word.partition("=")[0] == "--replicas")
    del arguments[place : place + (1 if "=" in arguments[place] else 2)]
    ended = _cluster.torchrun(arguments, replicas, device=device)
    printed = [line for one in ended for line in one.error.splitlines()]  # with what torchrun says of itself
    lines = [line for line in printed if line.startswith("fastdef: ")]
    sys.stderr.write("".join(f"{line}\n" for line in printed if line.startswith("note: ")))
    sys.stdout.write("".join(one.out for one in ended))  # of the first alone
    if any(LOST not in line for line in lines):
        raise ValueError(lines[0].removeprefix("fastdef: "))
    sys.stderr.write("".join(f"{line}\n" for line in lines[:1]))
    raise SystemExit(max(one.status for one in ended))
