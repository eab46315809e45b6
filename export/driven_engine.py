"""An export whose step and classifier are driven from here, by the slots and the session of the runtime."""

import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from fastdef.defense import uniform_noise
from fastdef.export.sessions import InferenceSession
from fastdef.export.whole_engine import Array, Engine, EngineResult, opened
from fastdef.runtime import GraphedSlots, Program, Request, Session, Slots, Stats, bucket_sizes, cpu_chunk, run_batch


class DrivenEngine(Engine):
    """``step`` and ``classifier``, driven by the slots and the refill of the runtime in PyTorch.

    The file has a few masked steps and no control flow, so that nothing waits for the host inside it, and an image
    that is done leaves for the next.

    Args:
        step: runs ``step``.
        classifier: runs ``classifier``.
        description: the exporter's.
        slots: images under way at once.
    """

    def __init__(
        self,
        step: InferenceSession,
        classifier: InferenceSession,
        description: dict[str, Any],
        *,
        slots: int,
    ) -> None:
        super().__init__(description, exact=step.exact and classifier.exact)
        self._opened: tuple[_SlotsOfFile, InferenceSession] | None = (_SlotsOfFile(step, slots=slots), classifier)
        self._device = torch.device(step.device)

    def close(self) -> None:
        """Let go of the engines' memory."""
        self._opened = None

    def _answer(self, images: Array, ids: Array, seed: int) -> EngineResult:
        pairs = zip(torch.from_numpy(images), ids.tolist(), strict=True)
        batch = run_batch(self._session(seed), (Request(image, noise_id) for image, noise_id in pairs))
        return EngineResult(
            probabilities=batch.logits.exp().numpy(force=True),
            steps=batch.steps.to(torch.int32).numpy(),
            converged=batch.converged.numpy(),
            loss=batch.loss.numpy(),
            smoothed=batch.images.numpy(force=True),
        )

    def _session(self, seed: int) -> Session:
        slots, classifier = opened(self._opened)
        defense = self.description["defense"]

        def noise(ids: Tensor, loop: int, like: Tensor) -> Tensor:
            ids = ids.to(like.device)
            return uniform_noise(ids, torch.full_like(ids, loop), like.shape[1:], seed=seed, sigma=defense["sigma"])

        program = Program(
            place=lambda values: values.to(self._device),
            noise=noise,
            classify=lambda smoothed: classifier.run({classifier.inputs[0]: smoothed})[0].clamp_min(1e-38).log(),
            next_id=lambda: 0,  # every request has one
            delta=defense["delta"],
            outer_loops=defense["outer_loops"],
            max_steps=defense["max_steps"],
            classify_batch=slots.most,
        )
        return Session(slots, program, Stats())


class _SlotsOfFile:
    """Slots that a file advances, made when they are asked for: see :class:`fastdef.runtime.Pool`."""

    def __init__(self, step: InferenceSession, *, slots: int) -> None:
        self.most = slots
        self._step = step
        self._idle: dict[int, list[Slots]] = defaultdict(list)

    @property
    def sizes(self) -> list[int]:
        return bucket_sizes(self.most)

    def acquire(self, size: int, like: Tensor) -> Slots:
        images = like.new_zeros((size, *like.shape))
        if self._step.replayable:
            if self._idle[size]:
                return self._idle[size].pop()
            return GraphedSlots(self._advance, images, layout=torch.contiguous_format)
        chunk = cpu_chunk(size) if like.device.type == "cpu" else None
        return Slots(self._advance, images, chunk=chunk, layout=torch.contiguous_format)

    def release(self, slots: Slots) -> None:
        """Kept where they hold a graph."""
        if self._step.replayable:
            self._idle[slots.size].append(slots)

    def halve(self) -> None:
        self.most //= 2
        self._idle.clear()
        warnings.warn(f"out of memory: going on with {self.most} slots", RuntimeWarning, stacklevel=2)

    def _advance(self, *state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images, steps, loss, running = self._step.run(dict(zip(self._step.inputs, state, strict=True)))
        return images, steps, loss, running
