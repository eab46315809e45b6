"""What a scheduler is given and gives back, where its slots come from, and what it counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastdef.runtime.slots import Slots


@dataclass(frozen=True)
class LoopRequest:
    """An image that asks for a slot.

    Attributes:
        id: names it; comes back in its :class:`LoopResult`.
        image: (C, H, W) float32, noise added, on the device of the slots.
        limit: steps it may take.
        deadline: ``time.monotonic()`` at which it must leave, done or not.
        steps: taken already, before it had to make room.
        loss: L_F at the last of them; NaN before the first.
        served: looks of the host that it has had a slot for.
    """

    id: int
    image: Tensor
    limit: int
    deadline: float | None = None
    steps: int = 0
    loss: float = math.nan
    served: int = 0


@dataclass(frozen=True)
class LoopResult:
    """An image that left its slot.

    Attributes:
        id: of its :class:`LoopRequest`.
        image: (C, H, W) float32 smoothed image.
        steps: gradient steps taken.
        loss: L_F at the last look; of ``image`` itself unless ``expired``.
        expired: it left because its deadline passed.
        started: it had a slot; False where the deadline passed before.
    """

    id: int
    image: Tensor
    steps: int
    loss: float
    expired: bool = False
    started: bool = True


@dataclass
class Stats:
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
