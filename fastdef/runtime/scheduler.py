"""In-flight batching: a finished image leaves its slot and the next one enters.

Run in lockstep, a batch takes as long as its slowest image, and 30-60 % of the steps move nobody. Here the slots stay
full while there is a queue, and when it drains the images left move into fewer slots.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
    """

    key: int
    image: Tensor
    limit: int
    deadline: float | None = None


@dataclass(frozen=True)
class End:
    """An image that left its slot.

    Attributes:
        key: of its :class:`Start`.
        image: (C, H, W) float32 smoothed image.
        steps: gradient steps taken.
        loss: L_F at the last look; of ``image`` itself unless ``expired``.
        expired: it left because its deadline passed.
    """

    key: int
    image: Tensor
    steps: int
    loss: float
    expired: bool


@dataclass
class Tally:
    """What the device was asked for, and what of it moved an image or found one done.

    Attributes:
        slot_steps: evaluations of a slot, occupied or not.
        useful: evaluations that an image needed: its steps, and the one that found it done.
    """

    slot_steps: int = 0
    useful: int = 0

    def clear(self) -> None:
        """Count from nothing."""
        self.slot_steps = self.useful = 0


def run(
    starts: Iterator[Start | None],
    lease: Callable[[int], Slots],
    sizes: Sequence[int],
    tally: Tally,
) -> Iterator[End]:
    """Smooth what ``starts`` gives, in whatever order it finishes.

    Args:
        starts: the queue. None means that nothing is to be had before something has left.
        lease: the slots of a size, with their threshold set; the same ones whenever this run asks again.
        sizes: the batch sizes allowed, ascending; one size means no shrinking.
        tally: counts the work, for benchmarks.
    """
    flight = _Flight(starts, lease, sizes, tally)
    while (slots := flight.fill()) is not None:
        yield from flight.advance(slots)


class _Flight:
    """The images in flight of one run."""

    def __init__(
        self, starts: Iterator[Start | None], lease: Callable[[int], Slots], sizes: Sequence[int], tally: Tally
    ) -> None:
        self._starts = starts
        self._lease = lease
        self._sizes = sizes
        self._tally = tally
        self._waiting: deque[Start] = deque()
        self._deadlines: dict[int, float] = {}
        self._slots: Slots | None = None

    def fill(self) -> Slots | None:
        """Pull from the queue, choose the batch size, fill the empty slots. None when nothing is left."""
        occupied = 0 if self._slots is None else self._slots.size - len(self._slots.free())
        while occupied + len(self._waiting) < self._sizes[-1]:
            start = next(self._starts, None)
            if start is None:
                break
            self._waiting.append(start)
        wanted = occupied + len(self._waiting)
        if wanted == 0:
            return None
        slots = self._resize(next(size for size in self._sizes if size >= wanted or size == self._sizes[-1]))
        self._enter(slots)
        return slots

    def advance(self, slots: Slots) -> list[End]:
        """Run the slots until the host looks, and let out what is done or late."""
        before = slots.slot_steps
        done = slots.advance()
        self._tally.slot_steps += slots.slot_steps - before
        late = self._late(slots, set(done))
        leaving = done + late
        if not leaving:
            return []
        keys = [slots.keys[slot] for slot in leaving]
        images, steps, _, loss = slots.take(leaving)
        ends = [
            End(key, image, count, value, expired)
            for key, image, count, value, expired in zip(
                keys, images, steps.tolist(), loss.tolist(), [False] * len(done) + [True] * len(late), strict=True
            )
            if key is not None
        ]
        for end in ends:
            self._deadlines.pop(end.key, None)
            self._tally.useful += end.steps + 1
        return ends

    def _late(self, slots: Slots, done: set[int]) -> list[int]:
        if not self._deadlines:
            return []
        now = time.monotonic()
        return [
            slot
            for slot, key in enumerate(slots.keys)
            if key is not None and slot not in done and self._deadlines.get(key, now) < now
        ]

    def _resize(self, size: int) -> Slots:
        slots = self._slots
        if slots is not None and slots.size == size:
            return slots
        fresh = self._lease(size)
        if slots is not None:
            moving = [slot for slot, key in enumerate(slots.keys) if key is not None]
            if moving:
                keys = [key for key in slots.keys if key is not None]
                images, steps, limits, _ = slots.take(moving)
                fresh.put(list(range(len(moving))), keys, images, steps, limits)
        self._slots = fresh
        return fresh

    def _enter(self, slots: Slots) -> None:
        free = slots.free()[: len(self._waiting)]
        if not free:
            return
        entering = [self._waiting.popleft() for _ in free]
        for start in entering:
            if start.deadline is not None:
                self._deadlines[start.key] = start.deadline
        images = torch.stack([start.image for start in entering])
        limits = to_device(torch.tensor([start.limit for start in entering], dtype=torch.int32), images.device)
        slots.put(free, [start.key for start in entering], images, torch.zeros_like(limits), limits)
