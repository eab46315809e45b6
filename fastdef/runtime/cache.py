"""From a model to slots that run: traces, compiles and keeps the steps and the 16-bit classifier of one model."""

import os
import threading
import warnings
from collections import defaultdict
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.nn import prefix, routing_state
from fastdef.runtime.checked import Network, checked_step, is_random
from fastdef.runtime.classifier import reduced_classifier
from fastdef.runtime.cuda_graph import GraphedSlots
from fastdef.runtime.forward import check_called_once, forward
from fastdef.runtime.memory import machine_bytes, step_bytes
from fastdef.runtime.modes import own_modes
from fastdef.runtime.slots import Slots
from fastdef.runtime.solvers import Solver
from fastdef.runtime.step import MaskedStep, Step, compiled
from fastdef.runtime.trace import TracedStep
from fastdef.runtime.weights import fingerprint

_Key = tuple[torch.Size, torch.dtype, torch.device]  # of a batch, or without its size
_LOCK = threading.RLock()  # of all caches: torch traces and compiles in one thread at a time
_PART = 0.25  # of the machine's memory that a step may take on a CPU
_CPU_CHUNK = 16  # images a CPU runs at once; measured best on WRN-10-2 and WRN-16-4, 1.2 to 1.4 times faster than 64


class StepCache:
    """The compiled steps of one model, one for each batch shape, and a pool of slots to run them on.

    A step holds folded copies of the model's weights, and the branches or the fusing weight that were chosen. When a
    weight, a running statistic, the device or a choice has changed since, all steps are made anew for the next
    slots. A copy, or what a pickle holds, is without steps. Safe to use from several threads; not in a forked process.

    Attributes:
        slots: the most that there are at once.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        *,
        solver: Solver,
        dtype: torch.dtype,
        compile: bool,
        clamp: bool,
        slots: int,
        shrinks: bool,
    ) -> None:
        self._model = model
        self._layer = layer
        prefix(model, layer)  # refuses a layer that the model lacks
        self._solver = solver
        self._dtype = dtype
        self._compile = compile
        self._clamp = clamp
        self._shrinks = shrinks
        self.slots = slots
        self.forget()

    def __getstate__(self) -> dict[str, object]:
        made = {"_steps", "_known", "_classifiers", "_most", "_traced", "_idle", "_made", "_made_of"}
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()

    @property
    def sizes(self) -> list[int]:
        """The numbers of slots there may be, ascending."""
        return bucket_sizes(self.slots) if self._shrinks else [self.slots]

    def acquire(self, size: int, like: Tensor) -> Slots:
        """Slots for images like ``like`` (C, H, W) that nobody else has until they are released."""
        key = torch.Size((size, *like.shape)), like.dtype, like.device
        if self._process != os.getpid():
            raise ValueError(f"a defense needs the process it was made in ({self._process}), got a fork: spawn instead")
        with _LOCK:
            if self._fingerprint() != self._made_of:
                self.forget()
            slots = self._idle[key].pop() if self._idle[key] else self._make(key)
            self._made[slots] = key
            return slots

    def release(self, slots: Slots) -> None:
        """Take slots back; those made before the model changed go."""
        with _LOCK:
            if slots in self._made:
                self._idle[self._made[slots]].append(slots)

    def classifier(self, images: Tensor) -> Network:
        """What classifies images like these, (N, C, H, W): the model, or a copy in 16 bit where the steps are in that.

        A model in float64 stays what it is. The copy is as old as the steps: whether the model has changed is seen when
        slots are acquired, and not at every batch, for that reads every weight.
        """
        if images.dtype == torch.float64 or self._dtype == torch.float32:
            return self._model
        kind = images.shape[1:], images.dtype, images.device
        made = self._classifiers.get(kind)  # without the lock, under which others compile
        return self._make_classifier(kind, images) if made is None else made

    def compute_in(self, dtype: torch.dtype) -> None:
        """Make steps and classifier anew in another type."""
        with _LOCK:
            self._dtype = dtype
            self.forget()

    def halve(self) -> None:
        """Half the slots, for good: what the memory cannot hold now it will not hold later. Warns."""
        with _LOCK:
            self.slots = max(1, self.slots // 2)
            self.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory: going on with {self.slots} slots", RuntimeWarning, stacklevel=2)

    def step(self, example: Tensor, *, known: TracedStep | None = None) -> MaskedStep:
        """The masked step of a batch like ``example``, traced and not compiled. In float64, all of it is.

        A ``known`` one of another batch size is taken again where it holds for this one.
        """
        dtype = torch.float64 if example.dtype == torch.float64 else self._dtype
        with own_modes(example.device):
            fresh = torch.zeros(example.shape, dtype=example.dtype, device=example.device)  # no inference tensor
            network = prefix(self._model, self._layer)
            forward(network, fresh)  # where it does not take such images, that is said of them and not of a trace
            check_called_once(self._model, self._layer, fresh[:1])
            self._check_random(fresh)
            return MaskedStep(checked_step(network, fresh, dtype=dtype, known=known), self._solver, clamp=self._clamp)

    def _check_random(self, images: Tensor) -> None:
        if not is_random(partial(forward, self._model), torch.rand_like(images[:2])):
            return
        if not self._shrinks:
            raise ValueError(
                "deterministic needs a model that answers the same twice, got a random one (dropout left on?)"
            )
        warnings.warn("the model is random: two calls give one image two answers", RuntimeWarning, stacklevel=2)

    def _make(self, key: _Key) -> Slots:
        with own_modes(key[2]):
            return self._empty_slots(key)

    def _empty_slots(self, key: _Key) -> Slots:
        shape, dtype, device = key
        chunk = cpu_chunk(shape[0], most=self._at_once(key)) if device.type == "cpu" else shape[0]
        step = self._step((torch.Size((chunk, *shape[1:])), dtype, device))
        images = torch.zeros(shape, dtype=dtype, device=device)
        if device.type == "cpu" or not self._traced[step]:  # what runs Python in between is no CUDA graph
            return Slots(step, images, chunk=chunk)
        return GraphedSlots(step, images)

    def _at_once(self, key: _Key) -> int:
        """Images whose step a part of the machine's memory holds, at least one."""
        (size, *shape), dtype, device = key
        image = torch.Size(shape)
        if image not in self._most:
            with suppress(ValueError, RuntimeError):  # which the step will refuse in its own words
                example = torch.rand((1, *image), dtype=dtype, device=device)
                needed = step_bytes(prefix(self._model, self._layer), example)
                self._most[image] = max(1, int(machine_bytes() * _PART // max(1, needed)))
        return self._most.get(image, size)

    def _step(self, key: _Key) -> Step:
        shape, dtype, device = key
        if key not in self._steps:
            images = torch.zeros(shape, dtype=dtype, device=device)
            kind = shape[1:], dtype, device
            step = self.step(images, known=self._known.get(kind))
            if isinstance(step.step, TracedStep):
                self._known[kind] = step.step
            fast = compiled(step, images) if self._compile and step.traced else step
            self._steps[key], self._traced[fast] = fast, step.traced
        return self._steps[key]

    def _make_classifier(self, kind: _Key, images: Tensor) -> Network:
        with _LOCK:
            if kind not in self._classifiers:
                with own_modes(images.device):
                    self._classifiers[kind] = reduced_classifier(
                        self._model, images, dtype=self._dtype, compile=self._compile, largest=self.slots
                    )
            return self._classifiers[kind]

    def forget(self) -> None:
        """Drop every compiled step and every slot; they are made anew when they are asked for."""
        self._process = os.getpid()
        self._steps: dict[_Key, Step] = {}
        self._known: dict[_Key, TracedStep] = {}
        self._classifiers: dict[_Key, Network] = {}
        self._most: dict[torch.Size, int] = {}
        self._traced: dict[Step, bool] = {}
        self._idle: dict[_Key, list[Slots]] = defaultdict(list)
        self._made: dict[Slots, _Key] = {}
        self._made_of = self._fingerprint()

    def _fingerprint(self) -> tuple[object, ...]:
        return *fingerprint(self._model), routing_state(self._model)


def cpu_chunk(size: int, most: int | None = None) -> int:
    """The largest divisor of ``size`` up to ``_CPU_CHUNK``, or ``size`` where that is too small to be worth it.

    Where the memory holds ``most`` images, fewer than that: the largest divisor up to it, however small.
    """
    held = size if most is None else most
    divisor = max(n for n in range(1, min(size, _CPU_CHUNK, held) + 1) if size % n == 0)
    return divisor if divisor > _CPU_CHUNK // 4 or held < size else size


def bucket_sizes(slots: int) -> list[int]:
    """Slots, and quarters of it down to one: few enough to compile, close enough to waste little."""
    sizes = [slots]
    while sizes[0] > 1:
        sizes.insert(0, max(1, sizes[0] // 4))
    return sizes
