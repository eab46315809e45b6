"""The processes of one run: who this one is, its share of a batch, and what it asks of the others.

A rank is one process of torch's default group, which ``torchrun`` and ``init_process_group`` make. Without a group
there is one rank, every function here gives back what it got, and nothing is sent. What is broadcast is the same on
all ranks to the bit, so weights that begin the same stay the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    # Before there is a group: its functions keep for a default the one that there is at its import, and torch._dynamo
    # imports it late. A group that is kept has threads, which may abort the interpreter at its end, after all is done.
    import torch.distributed.nn.functional

T = TypeVar("T")


class RankLost(RuntimeError):
    """Another process of the run has ended, or does not answer."""


def world_size() -> int:
    """W, how many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_slice(size: int) -> slice:
    """The rows of a joint batch that are this rank's.

    Raises:
        ValueError: if the batch is not a multiple of W: its mean would not be the mean of the ranks' means.
    """
    each, rest = divmod(size, world_size())
    if rest:
        raise ValueError(f"{world_size()} processes need a batch that they can share evenly, got one of {size} images")
    return slice(rank() * each, (rank() + 1) * each)


def all_gather(value: Tensor) -> Tensor:
    """(W, ...): the value of every rank, each of the same shape; without a gradient."""
    if world_size() == 1:
        return value[None]
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world_size())]
    with _others():
        dist.all_gather(parts, value.contiguous())
    return torch.stack(parts)


def all_reduce(value: Tensor) -> Tensor:
    """The sum of every rank's value, each of the same shape; without a gradient."""
    if world_size() == 1:
        return value
    summed = value.clone(memory_format=torch.contiguous_format)
    with _others():
        dist.all_reduce(summed)
    return summed


@torch.no_grad()
def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Set each tensor to its mean over the ranks, by one message."""
    if world_size() == 1:
        return
    summed = all_reduce(torch.cat([tensor.flatten() for tensor in tensors])) / world_size()
    parts = summed.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Set each tensor to what it is on rank 0."""
    if world_size() == 1:
        return
    for tensor in tensors:
        values = tensor.contiguous()
        with _others():
            dist.broadcast(values, 0)
        tensor.copy_(values)


def on_rank0(work: Callable[[], T]) -> T:
    """Have rank 0 do some work while the others wait; all get what it returns, or raise what it refuses.

    Raises:
        ValueError: on every rank, where ``work`` raises it; an OSError too.
    """
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            outcome[1] = error
    with _others():
        dist.broadcast_object_list(outcome, 0)
    result, refusal = outcome
    if refusal is not None:
        raise refusal
    return result


def all_gather_object(value: T) -> list[T]:
    """What every rank has, in their order: anything that can be pickled."""
    if world_size() == 1:
        return [value]
    parts: list[Any] = [None] * world_size()
    with _others():
        dist.all_gather_object(parts, value)
    return parts


def shard(number: int) -> range:
    """Which of so many things are this rank's: every W-th."""
    return range(rank(), number, world_size())


def all_gather_shards(results: Sequence[T]) -> list[T]:
    """The results of all items, in their order, from those of each rank for its own ``shard``."""
    parts = all_gather_object(list(results))
    return [parts[number % len(parts)][number // len(parts)] for number in range(sum(map(len, parts)))]


@contextmanager
def _others() -> Iterator[None]:
    """Torch has no class of its own for a peer that is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(f"another process of this run is gone: {' '.join(str(error).split())}") from error
