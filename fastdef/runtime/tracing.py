"""Tracing has the defenses of a process to itself: torch patches every module meanwhile, whatever thread calls it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._guards import TracingContext
from torch._guards import tracing as within
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

Table = dict[Any, Callable[..., Any]]  # from an operator to what it is taken apart into

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


def graph_of(function: Callable[..., Any], *inputs: Tensor, table: Table | None = None) -> GraphModule:
    """What the function does to these inputs, as a graph; operators of the table are taken apart.

    Without a mode of its own make_fx makes one for the shape of every value, which takes a third of its time.
    """
    shapes = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with tracing(), within(shapes):
        return make_fx(function, decomposition_table=table)(*inputs)


def _leave(me: int) -> None:
    with _change:
        _threads.discard(me)
        _change.notify_all()
