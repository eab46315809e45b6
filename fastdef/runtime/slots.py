"""Slots: a fixed batch of images on their way down, each stopping by itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdef.runtime.forward import to_device
from fastdef.runtime.modes import own_modes
from fastdef.runtime.step import Step
from fastdef.runtime.tracing import not_while_tracing


class Slots:
    """Static buffers for S images, and the device's side of running them. Not for two threads at once.

    Attributes:
        size: S.
        ids: what occupies each slot, None where it is empty.
        slot_steps: evaluations that the device was asked for since ``clear``, one a slot and step.
    """

    def __init__(
        self,
        step: Step,
        images: Tensor,
        *,
        chunk: int | None = None,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        """Make empty slots for a batch like ``images``, (S, C, H, W), run ``chunk`` at a time, kept in a ``layout``.

        In chunks that fit its caches a CPU is faster than on the whole, and needs a fraction of the memory. A chunk
        without an image is not run.
        """
        self.size = len(images)
        self.ids: list[int | None] = [None] * self.size
        self.slot_steps = 0
        self._chunk = chunk or self.size
        self._step = step
        self._images = torch.zeros_like(images, memory_format=layout)
        self._steps = torch.zeros(self.size, dtype=torch.int32, device=images.device)
        self._limits = torch.zeros_like(self._steps)
        self._loss = torch.zeros_like(self._images[:, 0, 0, 0])
        self._running = torch.zeros_like(self._steps, dtype=torch.bool)
        self._delta = torch.zeros_like(self._loss[0])

    def clear(self, delta: float) -> None:
        """Empty every slot, and set the threshold."""
        self.ids = [None] * self.size
        self.slot_steps = 0
        self._limits.zero_()
        self._steps.zero_()
        self._delta.fill_(delta)

    def state(self, start: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the step takes: images, steps and limits of the chunk that begins at ``start``, and delta."""
        part = slice(start, start + self._chunk)
        return self._images[part], self._steps[part], self._limits[part], self._delta

    def free_slots(self) -> list[int]:
        """The empty slots."""
        return [slot for slot, id in enumerate(self.ids) if id is None]

    def insert(self, slots: list[int], ids: Sequence[int], images: Tensor, steps: Tensor, limits: Tensor) -> None:
        """Let images enter: (n, C, H, W) float32, with (n,) int32 steps done and allowed."""
        rows = to_device(torch.tensor(slots), self._images.device)
        self._images[rows] = images
        self._steps[rows] = steps
        self._limits[rows] = limits
        for slot, id in zip(slots, ids, strict=True):
            self.ids[slot] = id

    def evict(self, slots: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Let images leave: copies of their (n, ...) image, steps, limit and last loss; the slots are empty then."""
        rows = to_device(torch.tensor(slots), self._images.device)
        out = self._images[rows], self._steps[rows], self._limits[rows], self._loss[rows]
        self._limits[rows] = 0
        for slot in slots:
            self.ids[slot] = None
        return out

    def advance(self) -> list[int]:
        """Run one step. Returns the occupied slots that did not need it: they are done."""
        for start in range(0, self.size, self._chunk):
            if any(id is not None for id in self.ids[start : start + self._chunk]):
                self.advance_chunk(start)
        return self._done(self._running.tolist())

    def advance_chunk(self, start: int = 0) -> None:
        """Run one step of the chunk that begins at ``start``, in place, so that a CUDA graph may hold it."""
        part = slice(start, start + self._chunk)
        self.slot_steps += self._chunk
        with not_while_tracing(), own_modes(self._images.device):
            images, steps, loss, running = self._step(*self.state(start))
            self._images[part].copy_(images)
            self._steps[part].copy_(steps)
            self._loss[part].copy_(loss)
            self._running[part].copy_(running)

    def _done(self, running: list[bool]) -> list[int]:
        return [slot for slot, id in enumerate(self.ids) if id is not None and not running[slot]]
