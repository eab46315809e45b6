"""From a model to slots that run: traces, compiles and keeps the tight steps of one model."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastdef.nn import prefix, routing_state
from fastdef.runtime.cuda_graph import GraphedSlots
from fastdef.runtime.forward import forward
from fastdef.runtime.modes import own_modes
from fastdef.runtime.slots import Slots
from fastdef.runtime.solvers import Solver
from fastdef.runtime.step import MaskedStep, Step, compiled
from fastdef.runtime.trace import traced_step

_Key = tuple[torch.Size, torch.dtype, torch.device]
_Pool = dict[_Key, list[Slots]]
_CPU_CHUNK = 16  # images a CPU runs at once; measured best on WRN-10-2 and WRN-16-4, 1.2 to 1.4 times faster than 64


class Engine:
    """The compiled steps of one model, one for each batch shape, and a pool of slots to run them on.

    A step holds folded copies of the model's weights, and the branches or the fusing weight that were chosen. When a
    weight, a running statistic, the device or a choice has changed since, all steps are made anew at the next lease.
    """

    def __init__(
        self, model: nn.Module, layer: str, *, solver: Solver, dtype: torch.dtype, compile: bool, clamp: bool
    ) -> None:
        self._model = model
        self._network = prefix(model, layer)
        self._solver = solver
        self._dtype = dtype
        self._compile = compile
        self._clamp = clamp
        self._lock = threading.RLock()
        self.forget()

    @contextmanager
    def lease(self, image: Tensor, delta: float) -> Iterator[Callable[[int], Slots]]:
        """Slots by size, for images like ``image`` (C, H, W); nobody else gets them until the context ends."""
        taken: dict[int, Slots] = {}
        pools: dict[int, _Pool] = {}

        def slots(size: int) -> Slots:
            if size not in taken:
                key = torch.Size((size, *image.shape)), image.dtype, image.device
                with self._lock:
                    self._refresh()
                    pools[size] = pool = self._idle
                    taken[size] = pool[key].pop() if pool[key] else self._make(key)
                taken[size].clear(delta)
            return taken[size]

        try:
            yield slots
        finally:
            with self._lock:
                for size, used in taken.items():
                    if pools[size] is self._idle:  # else the model has changed, and these are stale
                        self._idle[torch.Size((size, *image.shape)), image.dtype, image.device].append(used)

    def step(self, example: Tensor) -> MaskedStep:
        """The masked step of a batch like ``example``, traced and not compiled. In float64, all of it is."""
        dtype = torch.float64 if example.dtype == torch.float64 else self._dtype
        with own_modes(example.device):
            fresh = torch.zeros(example.shape, dtype=example.dtype, device=example.device)  # no inference tensor
            forward(self._network, fresh)  # where it does not take such images, that is said of them and not of a trace
            return MaskedStep(traced_step(self._network, fresh, dtype=dtype), self._solver, clamp=self._clamp)

    def _make(self, key: _Key) -> Slots:
        with own_modes(key[2]):
            return self._empty_slots(key)

    def _empty_slots(self, key: _Key) -> Slots:
        shape, dtype, device = key
        if device.type == "cuda":
            return GraphedSlots(self._step(key), torch.zeros(shape, dtype=dtype, device=device))
        chunk = cpu_chunk(shape[0])
        step = self._step((torch.Size((chunk, *shape[1:])), dtype, device))
        return Slots(step, torch.zeros(shape, dtype=dtype, device=device), chunk=chunk)

    def _step(self, key: _Key) -> Step:
        shape, dtype, device = key
        if key not in self._steps:
            step = self.step(torch.zeros(shape, dtype=dtype, device=device))
            self._steps[key] = compiled(step, torch.zeros(shape, dtype=dtype, device=device)) if self._compile else step
        return self._steps[key]

    def _refresh(self) -> None:
        if self._fingerprint() != self._made_of:
            self.forget()

    def forget(self) -> None:
        """Drop every compiled step and every slot; they are made anew when they are asked for."""
        self._steps: dict[_Key, Step] = {}
        self._idle: _Pool = defaultdict(list)
        self._made_of = self._fingerprint()

    def _fingerprint(self) -> tuple[object, ...]:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        if any(tensor.is_inference() for tensor in tensors):
            raise ValueError("ActiveDefense needs a model made outside torch.inference_mode, got weights made inside")
        return *((tensor.data_ptr(), tensor._version) for tensor in tensors), routing_state(self._model)


def cpu_chunk(size: int) -> int:
    """The largest divisor of ``size`` up to ``_CPU_CHUNK``, or ``size`` where that is too small to be worth it."""
    divisor = max(n for n in range(1, min(size, _CPU_CHUNK) + 1) if size % n == 0)
    return divisor if divisor > _CPU_CHUNK // 4 else size


def bucket_sizes(slots: int) -> list[int]:
    """Slots, and quarters of it down to one: few enough to compile, close enough to waste little."""
    sizes = [slots]
    while sizes[0] > 1:
        sizes.insert(0, max(1, sizes[0] // 4))
    return sizes
