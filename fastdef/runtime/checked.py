"""A step that is what autograd says: traced where the trace holds, else plain."""

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from fastdef.runtime.forward import reason_of
from fastdef.runtime.plain import PlainStep, plain_step
from fastdef.runtime.trace import TracedStep, traced_step

_TRIES = 3  # a feature at the mean flips its sign between two right programs; not in three draws
# Relative difference that is allowed of the loss and of the direction; right traces are two orders of magnitude below.
_ALLOWED = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-10, 1e-8)}
_JUDGED = 2  # images that plain autograd runs at once
_ALONE = 1e-3  # relative difference of an image's features alone and among others
Network = Callable[[Tensor], Tensor]


class _NotEqualError(Exception):
    """Says how far a trace is from autograd."""


def checked_step(
    network: Network, example: Tensor, *, dtype: torch.dtype, known: TracedStep | None = None
) -> TracedStep | PlainStep:
    """The traced step where it is what autograd says on random images, else the plain one, with a warning why.

    It must hold at the example's batch size; whether it does at another is noted in ``any_batch``.

    Args:
        network: the part of a model up to the smoothed layer, in eval mode.
        example: (N, C, H, W) images of the batch shape wanted, on the device wanted; values do not matter.
        dtype: of weights and activations; what is checked is the trace in the images' own precision.
        known: a step of this network from before, for another batch size; taken again where it holds for this one.

    Raises:
        ValueError: where an image's features hang on its neighbours, or have no gradient: there is no defense then.
    """
    features = _check_alone(network, example)
    if known is not None and known.any_batch and dtype == example.dtype and _holds(known, network, example):
        return known
    try:
        return _traced(network, example, dtype)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # whatever a trace stumbles over, autograd may not
        reason = reason_of(error)
    warnings.warn(
        f"the network cannot be traced, so the defense runs it plainly, uncompiled and several times slower: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    return PlainStep(network, features=features)


@torch.no_grad()
def is_random(network: Network, images: Tensor) -> bool:
    """Whether two calls give one image two answers; NaN is the same as NaN."""
    first, second = network(images), network(images)
    if not torch.equal(first.isfinite(), second.isfinite()):
        return True
    return relative(first.nan_to_num(), second.nan_to_num()) > _ALONE


def _traced(network: Network, example: Tensor, dtype: torch.dtype) -> TracedStep:
    """Traced on few images, which takes little memory, where that holds for any batch; else on as many as asked for."""
    few = random_like(example, seed=0, size=_another(len(example)))
    more = random_like(example, seed=0, size=len(few) + 1)
    for twin in (None, more):
        with suppress(Exception):  # what its operators say where they hold for one size alone
            step = _equal(network, few, dtype, sizes=(len(few), len(example)), twin=twin)
            step.any_batch = True
            return step
    return _equal(network, example, dtype, sizes=(len(example),))


def _equal(
    network: Network, example: Tensor, dtype: torch.dtype, *, sizes: tuple[int, ...], twin: Tensor | None = None
) -> TracedStep:
    step = traced_step(network, example, dtype=example.dtype, twin=twin)
    for size in sizes:
        _compare(step, network, example, size)
    return step if dtype == example.dtype else traced_step(network, example, dtype=dtype, twin=twin)


def _holds(step: TracedStep, network: Network, example: Tensor) -> bool:
    try:
        _compare(step, network, example, len(example))
    except (_NotEqualError, RuntimeError):  # made for one size, after all
        return False
    return True


def _check_alone(network: Network, example: Tensor) -> int:
    """M, of a network that gives an image the same features and gradient whoever its neighbours are.

    Raises:
        ValueError: for one that does not, be it that it is made so, or that an operator's backward is wrong; for
            features that are not finite.
    """
    images = random_like(example, seed=0, size=3)
    with torch.no_grad():
        alone, among = network(images[:1]), network(images)[:1]
    if is_random(network, images):
        warnings.warn("the network up to the smoothed layer is random (dropout left on?)", RuntimeWarning, stacklevel=3)
        return alone.numel()
    if not among.isfinite().all():
        raise ValueError("the defense needs finite features, got NaN or Inf: are the weights finite?")
    if relative(among, alone) > _ALONE:
        needed, got = "features of each image alone", "a layer whose output hangs on the rest of the batch"
        raise ValueError(f"the defense needs {needed}, got {got}")
    if not any(_same_gradient(network, random_like(example, seed=seed, size=3)) for seed in range(_TRIES)):
        got = "autograd gives it another among others: an operator's backward is wrong"
        raise ValueError(f"the defense needs the gradient of each image alone, and {got}")
    return alone.numel()


def _same_gradient(network: Network, images: Tensor) -> bool:
    alone, among = plain_step(network, images[:1])[1], plain_step(network, images)[1][:1]
    return relative(among, alone) <= _ALLOWED[images.dtype][1]


def _compare(step: TracedStep, network: Network, example: Tensor, size: int) -> None:
    loss_allowed, direction_allowed = _ALLOWED[example.dtype]
    worst = (float("inf"), float("inf"))
    for seed in range(1, 1 + _TRIES):
        images = random_like(example, seed=seed, size=size)
        loss, direction = step(images)
        # A few at a time, each image's features being its own: autograd keeps more than the step that it judges.
        parts = [plain_step(network, part) for part in images.split(_JUDGED)]
        expected_loss, expected = (torch.cat(values) for values in zip(*parts, strict=True))
        apart = relative(loss, expected_loss), relative(direction, expected)
        if apart[0] <= loss_allowed and apart[1] <= direction_allowed:
            return
        worst = min(worst, apart)
    raise _NotEqualError(f"its trace is {worst[0]:.2%} off in the loss and {worst[1]:.2%} in the gradient")


def relative(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm; what is not finite is infinitely far."""
    value, expected = value.double(), expected.double()
    apart = float((value - expected).norm() / expected.norm().clamp_min(1e-30))
    return apart if apart == apart else float("inf")


def random_like(example: Tensor, *, seed: int, size: int | None = None) -> Tensor:
    """As many images as an example has, or ``size``, uniform in [0, 1]."""
    shape = (size or len(example), *example.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=example.dtype).to(example.device)


def _another(size: int) -> int:
    """Few images, and another number than ``size``."""
    return 2 if size != 2 else 3
