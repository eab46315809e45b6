"""In-flight batching: a finished image leaves its slot and the next one enters.

Run in lockstep, a batch takes as long as its slowest image, and 30-60 % of the steps move nobody. Here the slots stay
full while there is a queue, and when it drains the images left move into fewer slots.
"""

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from fastdef.runtime.forward import to_device
from fastdef.runtime.slots import Slots


@dataclass(frozen=True)
class Start:
    """An image that asks for a slot.

    Attributes:
        key: names it; comes back in its :class:`End`.
        image: (C, H, W) float32, noise added, on the device of the slots.
        limit: steps it may take.
        deadline: ``time.monotonic()`` at which it must leave, done or not.
        steps: taken already, before it had to make room.
        loss: L_F at the last of them; NaN before the first.
        served: looks of the host that it has had a slot for.
    """

    key: int
    image: Tensor
    limit: int
    deadline: float | None = None
    steps: int = 0
    loss: float = math.nan
    served: int = 0


@dataclass(frozen=True)
class End:
    """An image that left its slot.

    Attributes:
        key: of its :class:`Start`.
        image: (C, H, W) float32 smoothed image.
        steps: gradient steps taken.
        loss: L_F at the last look; of ``image`` itself unless ``expired``.
        expired: it left because its deadline passed.
        started: it had a slot; False where the deadline passed before.
    """

    key: int
    image: Tensor
    steps: int
    loss: float
    expired: bool = False
    started: bool = True


@dataclass
class Tally:
    """What the device was asked for, and what of it moved an image or saw that one was done.

    Attributes:
        slot_steps: evaluations of a slot, occupied or not.
        useful: evaluations that an image needed: its steps, and the one that saw it done.
    """

    slot_steps: int = 0
    useful: int = 0

    def clear(self) -> None:
        """Count from nothing."""
        self.slot_steps = self.useful = 0


class Pool(Protocol):
    """Where slots come from."""

    @property
    def sizes(self) -> Sequence[int]:
        """The numbers of slots there may be, ascending; one size means no shrinking."""
        ...

    def acquire(self, size: int, like: Tensor) -> Slots:
        """Slots for images like ``like`` (C, H, W) that nobody else has until they are released."""
        ...

    def release(self, slots: Slots) -> None:
        """Take slots back."""
        ...

    def halve(self) -> None:
        """Have half as many from now on, for good. Warns."""
        ...


class Scheduler:
    """The images that wait for a slot, and those that have one. Not for two threads at once.

    Args:
        pool: of the slots.
        delta: their threshold.
        tally: counts the work, for benchmarks.
        quantum: looks of the host by which an image may be ahead of one that waits before it makes room and waits
            itself, with its image and its steps kept: slow images cannot hold every slot. None: nobody makes room.
    """

    def __init__(self, pool: Pool, delta: float, tally: Tally, *, quantum: int | None = None) -> None:
        self._pool = pool
        self._delta = delta
        self._tally = tally
        self._quantum = quantum
        self._order = count()
        self._waiting: list[tuple[int, int, Start]] = []  # a heap: least served first, then as they came
        self._inside: dict[int, Start] = {}  # by key, as they entered
        self._entered: dict[int, int] = {}  # by key, at which look
        self._looks = 0
        self._acquired: dict[int, Slots] = {}  # by size
        self._slots: Slots | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._inside)

    @property
    def room(self) -> int:
        """How many more images would have a slot, or are the first to wait for one."""
        most = self._pool.sizes[-1]
        if self._quantum is None:
            return most - len(self)
        return most - sum(served == 0 for served, _, _ in self._waiting)

    def add(self, start: Start) -> None:
        """Let an image wait for a slot."""
        heapq.heappush(self._waiting, (start.served, next(self._order), start))

    def release(self) -> None:
        """Give every slot back."""
        for slots in self._acquired.values():
            self._pool.release(slots)
        self._acquired, self._slots = {}, None

    def remove(self, keys: set[int]) -> None:
        """Forget images, wherever they are."""
        self._waiting = [entry for entry in self._waiting if entry[2].key not in keys]
        heapq.heapify(self._waiting)
        if self._slots is not None and (leaving := self._where(keys)):
            self._slots.take(leaving)
        for key in keys:
            self._inside.pop(key, None)
            self._entered.pop(key, None)

    def advance(self) -> list[End]:
        """Fill the slots, run them until the host looks, and let out what is done or late."""
        ends = self._late_in_the_queue()
        if not len(self):
            return ends
        slots = self._fill()
        before = slots.slot_steps
        done = slots.advance()
        self._tally.slot_steps += slots.slot_steps - before
        self._looks += 1
        return ends + self._let_out(slots, done, expired=False) + self._let_out(slots, self._late(slots), expired=True)

    def _late_in_the_queue(self) -> list[End]:
        now = time.monotonic()
        late = [start for _, _, start in self._waiting if start.deadline is not None and start.deadline < now]
        if late:
            self.remove({start.key for start in late})
        return [End(s.key, s.image, s.steps, s.loss, expired=True, started=s.served > 0) for s in late]

    def _late(self, slots: Slots) -> list[int]:
        now = time.monotonic()
        late = {key for key, start in self._inside.items() if start.deadline is not None and start.deadline < now}
        return self._where(late) if late else []

    def _let_out(self, slots: Slots, leaving: list[int], *, expired: bool) -> list[End]:
        if not leaving:
            return []
        keys = [slots.keys[slot] for slot in leaving]
        images, steps, _, loss = slots.take(leaving)
        rows = zip(keys, images, steps.tolist(), loss.tolist(), strict=True)
        ends = [End(key, image, taken, value, expired) for key, image, taken, value in rows if key is not None]
        for end in ends:
            del self._inside[end.key], self._entered[end.key]
            self._tally.useful += end.steps + 1
        return ends

    def _fill(self) -> Slots:
        """Choose the number of slots, and fill the empty ones."""
        sizes = self._pool.sizes
        slots = self._resize(next(size for size in sizes if size >= len(self) or size == sizes[-1]))
        if self._quantum is not None:
            self._make_room(slots, self._quantum)
        self._enter(slots)
        return slots

    def _resize(self, size: int) -> Slots:
        slots = self._slots
        if slots is not None and slots.size == size:
            return slots
        fresh = self._acquire(size)
        if slots is not None and self._inside:
            moving = self._where(set(self._inside))
            keys = [key for key in slots.keys if key is not None]
            images, steps, limits, _ = slots.take(moving)
            fresh.put(list(range(len(moving))), keys, images, steps, limits)
        self._slots = fresh
        return fresh

    def _acquire(self, size: int) -> Slots:
        if size not in self._acquired:
            like = next(iter(self._inside.values())) if self._inside else self._waiting[0][2]
            self._acquired[size] = self._pool.acquire(size, like.image)
            self._acquired[size].clear(self._delta)
        return self._acquired[size]

    def _make_room(self, slots: Slots, quantum: int) -> None:
        """Let the longest served wait, where there is no slot for others who had fewer looks."""
        without = sorted(self._waiting)[len(slots.free()) :]  # a slot that is empty displaces nobody
        longest = sorted(self._inside, key=self._served, reverse=True)
        pairs = zip(longest, without, strict=False)
        leaving = {key: self._served(key) for key, (served, _, _) in pairs if self._served(key) - served >= quantum}
        if not leaving:
            return
        places = self._where(set(leaving))
        keys = [slots.keys[slot] for slot in places]
        images, steps, _, loss = slots.take(places)
        for key, image, taken, value in zip(keys, images, steps.tolist(), loss.tolist(), strict=True):
            if key is not None:
                self.add(replace(self._inside.pop(key), image=image, steps=taken, loss=value, served=leaving[key]))

    def _enter(self, slots: Slots) -> None:
        free = slots.free()[: len(self._waiting)]
        if not free:
            return
        entering = [heapq.heappop(self._waiting)[2] for _ in free]
        self._inside.update((start.key, start) for start in entering)
        self._entered.update((start.key, self._looks) for start in entering)
        images = torch.stack([start.image for start in entering])
        counts = torch.tensor([[start.steps for start in entering], [start.limit for start in entering]])
        steps, limits = to_device(counts.to(torch.int32), images.device)
        slots.put(free, [start.key for start in entering], images, steps, limits)

    def _served(self, key: int) -> int:
        """Looks that an image inside has had a slot for, all its stays together."""
        return self._inside[key].served + self._looks - self._entered[key]

    def _where(self, keys: set[int]) -> list[int]:
        """The slots of images."""
        return [] if self._slots is None else [slot for slot, key in enumerate(self._slots.keys) if key in keys]
