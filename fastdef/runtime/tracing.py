"""Tracing has the defenses of a process to itself: torch patches every module meanwhile, whatever thread calls it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_change = threading.Condition()
_threads: set[int] = set()  # that run; or the one that traces
_waiting = 0  # to trace


@contextmanager
def not_while_tracing() -> Iterator[None]:
    """Run beside whoever runs, and not while another thread traces."""
    me = threading.get_ident()
    if me in _threads:  # inside itself, or inside a trace of its own
        yield
        return
    with _change:
        _change.wait_for(lambda: not _waiting)
        _threads.add(me)
    try:
        yield
    finally:
        _leave(me)


@contextmanager
def tracing() -> Iterator[None]:
    """Trace, once whoever runs has left; who comes meanwhile waits."""
    global _waiting
    me = threading.get_ident()
    if me in _threads:
        yield
        return
    with _change:
        _waiting += 1
        _change.wait_for(lambda: not _threads)
        _threads.add(me)
    try:
        yield
    finally:
        with _change:
            _waiting -= 1
        _leave(me)


def _leave(me: int) -> None:
    with _change:
        _threads.discard(me)
        _change.notify_all()
