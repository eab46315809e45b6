"""A model while an attack uses it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NO_GRADIENT = "attacks need a differentiable model; for a defense see Target.defended"


@dataclass
class _Hold:
    """A switch of a module or a weight, what it was, and how many attacks keep it off."""

    target: object
    name: str
    before: bool
    count: int = 0


_holds: dict[int, _Hold] = {}  # by id of the module or weight, for as long as an attack keeps it
_lock = threading.Lock()


@contextmanager
def frozen_eval(model: object) -> Iterator[None]:
    """Eval mode without weight gradients, for the time of an attack; then everything is as it was, whatever happened.

    In eval mode running statistics do not move, and without weight gradients a backward costs a third less. Attacks on
    one model, or on parts of it, may run in several threads: the last to leave restores it. A callable that is not a
    module is left alone. Not for a model that another thread trains at the same moment.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    weights = list(model.parameters())
    switches: list[tuple[object, str]] = [(module, "training") for module in model.modules()]
    switches += [(weight, "requires_grad") for weight in weights]
    _hold(switches)
    try:
        model.eval()
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        _release(switches)


def gradient_of(losses: Tensor, x: Tensor) -> Tensor:
    """(N,) losses -> the gradient of their sum at ``x``, in its shape.

    Raises:
        ValueError: if none flows back, as through a defense.
    """
    gradient = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    if gradient is None:
        raise ValueError(_NO_GRADIENT)
    return gradient


def check_differentiable(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that gives no gradient, by a forward of the ``images``, before any work is done on it.

    Raises:
        ValueError: if it gives none.
    """
    with frozen_eval(model), torch.enable_grad():
        if not model(images.detach().clone().requires_grad_()).requires_grad:
            raise ValueError(_NO_GRADIENT)


def _hold(switches: Sequence[tuple[object, str]]) -> None:
    with _lock:
        for target, name in switches:
            _holds.setdefault(id(target), _Hold(target, name, getattr(target, name))).count += 1


def _release(switches: Sequence[tuple[object, str]]) -> None:
    with _lock:
        for target, _ in switches:
            hold = _holds[id(target)]
            hold.count -= 1
            if not hold.count:
                setattr(hold.target, hold.name, hold.before)
                del _holds[id(target)]
