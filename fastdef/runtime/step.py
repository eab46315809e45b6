"""The masked step: one step of Algorithm 1 for a batch of slots, traced and compiled."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fastdef.runtime.forms import write_out
from fastdef.runtime.forward import reason_of
from fastdef.runtime.plain import PlainStep
from fastdef.runtime.solvers import Solver
from fastdef.runtime.trace import TracedStep
from fastdef.runtime.tracing import graph_of

# images, steps, limits, delta -> images, steps, loss, running
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


class MaskedStep(nn.Module):
    """One step of Algorithm 1 for every slot that still needs it; the others do not move.

    The mask is computed on the device in every step, so how often the host looks at it never changes a result.
    """

    def __init__(self, step: TracedStep | PlainStep, solver: Solver, *, clamp: bool) -> None:
        super().__init__()
        self.step = step
        self.solver = solver
        self.clamp = clamp

    @property
    def traced(self) -> bool:
        """Whether it is one graph, which a compiler takes."""
        return isinstance(self.step, TracedStep)

    @property
    def any_batch(self) -> bool:
        """Whether it is one graph for every batch size, which an exporter takes."""
        return isinstance(self.step, TracedStep) and self.step.any_batch

    def write_out(self, example: Tensor) -> None:
        """Have no operator that exporters know no form of; ``example`` is a batch of images."""
        if isinstance(self.step, TracedStep):
            write_out(self.step.graph, example)

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


def compiled(step: MaskedStep, images: Tensor) -> Step:
    """``step`` through torch.compile, as one graph of static shapes, those of ``images``.

    On a machine that cannot compile (no C++ compiler, no Triton) it stays as it is, and one warning says so.
    """
    # Traced first: Dynamo counts recompilations by code object, and a graph module brings one of its own.
    state = empty_state(images)
    return compile_graph(graph_of(step, *state), state, dynamic=False)


def compile_graph(graph: GraphModule, example: tuple[Tensor, ...], *, dynamic: bool | None) -> Callable[..., Any]:
    """A graph through torch.compile, run once on what it takes; itself, with a warning, where nothing compiles."""
    fast = torch.compile(graph, fullgraph=True, dynamic=dynamic)
    try:
        with torch.no_grad():
            fast(*example)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        reason = reason_of(error.inner_exception)
        warnings.warn(f"torch.compile does not work here, so the defense runs uncompiled: {reason}", stacklevel=2)
        return graph
    return fast


def empty_state(images: Tensor, layout: torch.memory_format = torch.channels_last) -> tuple[Tensor, ...]:
    """What a step takes for a batch like ``images`` with nothing in it: images, steps, limits and delta."""
    counts = torch.zeros(len(images), dtype=torch.int32, device=images.device)
    return torch.zeros_like(images, memory_format=layout), counts, counts.clone(), images.new_zeros(())
