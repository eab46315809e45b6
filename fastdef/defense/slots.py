"""Slots: a fixed batch of images on their way down, each stopping by itself."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fastdef.defense.modes import own_modes
from fastdef.defense.solvers import Solver
from fastdef.defense.tight import TightStep

# images, steps, limits, delta -> images, steps, loss, running
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


class MaskedStep(nn.Module):
    """One step of Algorithm 1 for every slot that still needs it; the others do not move.

    The mask is computed on the device in every step, so how often the host looks at it never changes a result.
    """

    def __init__(self, step: TightStep, solver: Solver, *, clamp: bool) -> None:
        super().__init__()
        self.step = step
        self.solver = solver
        self.clamp = clamp

    def forward(
        self, images: Tensor, steps: Tensor, limits: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Advance each slot by one step.

        Args:
            images: (S, C, H, W) float32.
            steps: (S,) int32 steps done.
            limits: (S,) int32 steps allowed; 0 in an empty slot.
            delta: () float32 threshold.

        Returns:
            images and steps after the step; loss *before* it, (S,) float32; and running, (S,) bool: those that moved.
        """
        loss, direction = self.step(images)
        running = (loss > delta) & (steps < limits)
        moved = images - direction * self.solver.stride(loss, direction, delta=delta, features=self.step.features)
        if self.clamp:
            moved = moved.clamp(0, 1)
        return torch.where(running[:, None, None, None], moved, images), steps + running, loss, running


class Slots:
    """Static buffers for S images, and the device's side of running them. Not for two threads at once.

    Attributes:
        size: S.
        keys: what occupies each slot, None where it is empty.
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
        self.keys: list[int | None] = [None] * self.size
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
        self.keys = [None] * self.size
        self.slot_steps = 0
        self._limits.zero_()
        self._steps.zero_()
        self._delta.fill_(delta)

    def state(self, start: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the step takes: images, steps and limits of the chunk that begins at ``start``, and delta."""
        part = slice(start, start + self._chunk)
        return self._images[part], self._steps[part], self._limits[part], self._delta

    def free(self) -> list[int]:
        """The empty slots."""
        return [slot for slot, key in enumerate(self.keys) if key is None]

    def put(self, slots: list[int], keys: Sequence[int], images: Tensor, steps: Tensor, limits: Tensor) -> None:
        """Let images enter: (n, C, H, W) float32, with (n,) int32 steps done and allowed."""
        rows = sent(torch.tensor(slots), self._images.device)
        self._images[rows] = images
        self._steps[rows] = steps
        self._limits[rows] = limits
        for slot, key in zip(slots, keys, strict=True):
            self.keys[slot] = key

    def take(self, slots: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Let images leave: copies of their (n, ...) image, steps, limit and last loss; the slots are empty then."""
        rows = sent(torch.tensor(slots), self._images.device)
        out = self._images[rows], self._steps[rows], self._limits[rows], self._loss[rows]
        self._limits[rows] = 0
        for slot in slots:
            self.keys[slot] = None
        return out

    def advance(self) -> list[int]:
        """Run one step. Returns the occupied slots that did not need it: they are done."""
        for start in range(0, self.size, self._chunk):
            if any(key is not None for key in self.keys[start : start + self._chunk]):
                self.advance_chunk(start)
        return self._done(self._running.tolist())

    def advance_chunk(self, start: int = 0) -> None:
        """Run one step of the chunk that begins at ``start``, in place, so that a CUDA graph may hold it."""
        part = slice(start, start + self._chunk)
        self.slot_steps += self._chunk
        with own_modes(self._images.device):
            images, steps, loss, running = self._step(*self.state(start))
            self._images[part].copy_(images)
            self._steps[part].copy_(steps)
            self._loss[part].copy_(loss)
            self._running[part].copy_(running)

    def _done(self, running: list[bool]) -> list[int]:
        return [slot for slot, key in enumerate(self.keys) if key is not None and not running[slot]]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on a device; from pinned memory to a GPU, or the host would wait for all that it has asked of it."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def compiled(step: MaskedStep, images: Tensor) -> Step:
    """``step`` through torch.compile, as one graph of static shapes, those of ``images``.

    On a machine that cannot compile (no C++ compiler, no Triton) it stays as it is, and one warning says so.
    """
    # Traced first: Dynamo counts recompilations by code object, and a graph module brings one of its own.
    graph = make_fx(step)(*Slots(step, images).state())
    fast = torch.compile(graph, fullgraph=True, dynamic=False)
    try:
        with torch.no_grad():
            fast(*Slots(step, images).state())
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = next(iter(str(error.inner_exception).strip().splitlines()), type(error.inner_exception).__name__)
        warnings.warn(f"torch.compile does not work here, so the defense runs uncompiled: {reason}", stacklevel=2)
        return step
    return fast
