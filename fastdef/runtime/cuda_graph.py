"""Slots on a GPU: the step is a CUDA graph, and the host looks at what it did while the next steps run."""

import math
import statistics
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fastdef.runtime.slots import Slots
from fastdef.runtime.step import Step

_LOOK = 3e-4  # seconds that the host takes to look at its slots and refill them; not measured on a GPU yet
_MOST_STEPS_A_LOOK = 8
_CAPTURING = threading.Lock()  # PyTorch captures one graph at a time, in the whole process


class GraphedSlots(Slots):
    """Slots on CUDA: a step is a CUDA graph on the static buffers, and the host looks one look behind.

    What is running, steps and losses after look i cross to pinned memory while the steps of look i + 1 run, so the
    device does not wait for the host. A slot that was filled after look i was asked for is not judged by it. A look is
    as many steps as hide the host's work behind them: one of a large network, several of a small one.
    """

    def __init__(self, step: Step, images: Tensor, *, layout: torch.memory_format = torch.channels_last) -> None:
        super().__init__(step, images, layout=layout)
        self._report = torch.zeros((3, self.size), dtype=images.dtype, device=images.device)
        self._reports = [self._pinned(self._report), self._pinned(self._report)]
        self._looks = 0
        self._filled = [0] * self.size
        self._judged: set[int] = set()
        with self._on_device():
            self._arrived = [torch.cuda.Event(), torch.cuda.Event()]
            self._graph = self._capture()
            self.every = steps_a_look(self._seconds())

    def clear(self, delta: float) -> None:
        """Empty every slot, and set the threshold."""
        super().clear(delta)
        self._looks = 0
        self._filled = [0] * self.size
        self._judged = set()

    def insert(self, slots: list[int], ids: Sequence[int], images: Tensor, steps: Tensor, limits: Tensor) -> None:
        """Let images enter; the looks asked for before this say nothing about them."""
        super().insert(slots, ids, images, steps, limits)
        self._judged.difference_update(slots)
        for slot in slots:
            self._filled[slot] = self._looks

    def evict(self, slots: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Let images leave; of those that were done, steps and losses are on the host already."""
        images, steps, limits, loss = super().evict(slots)
        if self._judged.issuperset(slots):  # they have not moved since the look at which they were done
            _, steps, loss = self._reports[self._looks % 2][:, slots]
            steps = steps.to(torch.int32)
        return images, steps, limits, loss

    @torch.no_grad()
    def advance(self) -> list[int]:
        """Query for ``every`` steps. Returns the slots that were done one look earlier."""
        self.slot_steps += self.every * self.size
        now, before = self._looks % 2, (self._looks + 1) % 2
        with self._on_device():
            for _ in range(self.every):
                self._graph.replay()
            self._reports[now].copy_(self._report, non_blocking=True)
            self._arrived[now].record()
        self._looks += 1
        if self._looks == 1:
            return []
        self._arrived[before].synchronize()
        judged = self._looks - 2  # the look that this report is of
        running = self._reports[before][0].bool().tolist()
        done = [slot for slot in self._done(running) if self._filled[slot] <= judged]
        self._judged = set(done)
        return done

    def _on_device(self) -> AbstractContextManager[object]:
        """Graphs and events are of the current device, which need not be that of the slots."""
        return torch.cuda.device(self._images.device)

    def _pinned(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like, device="cpu", pin_memory=True)

    def _advance_and_report(self) -> None:
        self.advance_chunk()
        self._report.copy_(torch.stack([self._running.to(self._report), self._steps.to(self._report), self._loss]))

    @torch.no_grad()
    def _capture(self) -> torch.cuda.CUDAGraph:
        with _CAPTURING:
            self._advance_and_report()  # compiles, and lets cuDNN choose, outside the capture
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                self._advance_and_report()
        return graph

    def _seconds(self) -> float:
        """Median time of a replay. No slot has a limit yet, so nothing moves."""
        times = []
        for _ in range(5):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            self._graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times)


def steps_a_look(seconds: float) -> int:
    """As few steps of so many ``seconds`` each as hide the host's look behind them: an image waits for the last."""
    return max(1, min(_MOST_STEPS_A_LOOK, math.ceil(_LOOK / seconds)))
