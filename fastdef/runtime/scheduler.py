"""In-flight batching: a finished image leaves its slot and the next one enters.

Run in lockstep, a batch takes as long as its slowest image, and 30-60 % of the steps move nobody. Here the slots stay
full while there is a queue, and when it drains the images left move into fewer slots.
"""

import heapq
import time
from dataclasses import replace
from itertools import count

import torch

from fastdef.runtime.forward import to_device
from fastdef.runtime.pool import LoopRequest, LoopResult, Pool, Stats
from fastdef.runtime.slots import Slots


class Scheduler:
    """The images that wait for a slot, and those that have one. Not for two threads at once.

    Args:
        pool: of the slots.
        delta: their threshold.
        stats: counts the work, for benchmarks.
        quantum: looks of the host by which an image may be ahead of one that waits before it makes room and waits
            itself, with its image and its steps kept: slow images cannot hold every slot. None: nobody makes room.
    """

    def __init__(self, pool: Pool, delta: float, stats: Stats, *, quantum: int | None = None) -> None:
        self._pool = pool
        self._delta = delta
        self._stats = stats
        self._quantum = quantum
        self._order = count()
        self._waiting: list[tuple[int, int, LoopRequest]] = []  # a heap: least served first, then as they came
        self._inside: dict[int, LoopRequest] = {}  # by id, as they entered
        self._entered: dict[int, int] = {}  # by id, at which look
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

    def add(self, start: LoopRequest) -> None:
        """Let an image wait for a slot."""
        heapq.heappush(self._waiting, (start.served, next(self._order), start))

    def release(self) -> None:
        """Give every slot back."""
        for slots in self._acquired.values():
            self._pool.release(slots)
        self._acquired, self._slots = {}, None

    def remove(self, ids: set[int]) -> None:
        """Forget images, wherever they are."""
        self._waiting = [entry for entry in self._waiting if entry[2].id not in ids]
        heapq.heapify(self._waiting)
        if self._slots is not None and (leaving := self._where(ids)):
            self._slots.evict(leaving)
        for id in ids:
            self._inside.pop(id, None)
            self._entered.pop(id, None)

    def advance(self) -> list[LoopResult]:
        """Fill the slots, run them until the host looks, and let out what is done or late."""
        ends = self._late_in_the_queue()
        if not len(self):
            return ends
        slots = self._fill()
        before = slots.slot_steps
        done = slots.advance()
        self._stats.slot_steps += slots.slot_steps - before
        self._looks += 1
        return ends + self._let_out(slots, done, expired=False) + self._let_out(slots, self._late(slots), expired=True)

    def _late_in_the_queue(self) -> list[LoopResult]:
        now = time.monotonic()
        late = [start for _, _, start in self._waiting if start.deadline is not None and start.deadline < now]
        if late:
            self.remove({start.id for start in late})
        return [LoopResult(s.id, s.image, s.steps, s.loss, expired=True, started=s.served > 0) for s in late]

    def _late(self, slots: Slots) -> list[int]:
        now = time.monotonic()
        late = {id for id, start in self._inside.items() if start.deadline is not None and start.deadline < now}
        return self._where(late) if late else []

    def _let_out(self, slots: Slots, leaving: list[int], *, expired: bool) -> list[LoopResult]:
        if not leaving:
            return []
        ids = [slots.ids[slot] for slot in leaving]
        images, steps, _, loss = slots.evict(leaving)
        rows = zip(ids, images, steps.tolist(), loss.tolist(), strict=True)
        ends = [LoopResult(id, image, taken, value, expired) for id, image, taken, value in rows if id is not None]
        for end in ends:
            del self._inside[end.id], self._entered[end.id]
            self._stats.useful += end.steps + 1
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
            ids = [id for id in slots.ids if id is not None]
            images, steps, limits, _ = slots.evict(moving)
            fresh.insert(list(range(len(moving))), ids, images, steps, limits)
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
        without = sorted(self._waiting)[len(slots.free_slots()) :]  # a slot that is empty displaces nobody
        longest = sorted(self._inside, key=self._served, reverse=True)
        pairs = zip(longest, without, strict=False)
        leaving = {id: self._served(id) for id, (served, _, _) in pairs if self._served(id) - served >= quantum}
        if not leaving:
            return
        places = self._where(set(leaving))
        ids = [slots.ids[slot] for slot in places]
        images, steps, _, loss = slots.evict(places)
        for id, image, taken, value in zip(ids, images, steps.tolist(), loss.tolist(), strict=True):
            if id is not None:
                self.add(replace(self._inside.pop(id), image=image, steps=taken, loss=value, served=leaving[id]))

    def _enter(self, slots: Slots) -> None:
        free = slots.free_slots()[: len(self._waiting)]
        if not free:
            return
        entering = [heapq.heappop(self._waiting)[2] for _ in free]
        self._inside.update((start.id, start) for start in entering)
        self._entered.update((start.id, self._looks) for start in entering)
        images = torch.stack([start.image for start in entering])
        counts = torch.tensor([[start.steps for start in entering], [start.limit for start in entering]])
        steps, limits = to_device(counts.to(torch.int32), images.device)
        slots.insert(free, [start.id for start in entering], images, steps, limits)

    def _served(self, id: int) -> int:
        """Looks that an image inside has had a slot for, all its stays together."""
        return self._inside[id].served + self._looks - self._entered[id]

    def _where(self, ids: set[int]) -> list[int]:
        """The slots of images."""
        return [] if self._slots is None else [slot for slot, id in enumerate(self._slots.ids) if id in ids]
