"""The classifier that a defense stands before: what it must be, where it is, and what it says to images."""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

from fastdef.nn import count_calls
from fastdef.runtime.tracing import not_while_tracing

_PRECISIONS = (torch.float32, torch.float64)


class NotTakenError(ValueError, RuntimeError):
    """The model failed on images of a shape: the caller's mistake most often, and still the failure that torch saw."""


def check_weights(model: nn.Module) -> None:
    """Refuse weights of another precision than the defense has for its images.

    Raises:
        ValueError: for any but float32 and float64.
    """
    for name, weight in model.named_parameters():
        if weight.dtype not in _PRECISIONS:
            raise ValueError(f"ActiveDefense needs a model in float32 or float64, got {name} in {weight.dtype}")


def check_model(model: nn.Module) -> None:
    """Refuse a model that does not answer as it was trained to.

    Raises:
        ValueError: for one in training mode, all of it or a part, and for what ``check_weights`` refuses.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("ActiveDefense needs a model in eval mode, got one in training mode; call model.eval()")
    check_weights(model)


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where images for a model belong: its device, and float64 for one in float64, else float32."""
    first = next(chain(model.parameters(), model.buffers()), None)
    if first is None:
        return torch.device("cpu"), torch.float32
    return first.device, torch.float64 if first.dtype == torch.float64 else torch.float32


@torch.no_grad()
def forward(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The network's answer to (N, C, H, W) images, in the precision of its weights whatever the caller casts.

    Raises:
        NotTakenError: for images that the network fails on; a ValueError, of one line.
    """
    try:
        with not_while_tracing(), torch.autocast(images.device.type, enabled=False):
            return network(images)
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # says nothing about the images
        raise
    except RuntimeError as error:
        shape = tuple(images.shape[1:])
        raise NotTakenError(f"the model does not take images of shape {shape}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def check_called_once(model: nn.Module, layer: str, images: Tensor) -> None:
    """Refuse a layer that the model calls again: smoothing its first output would leave the second as it is.

    Raises:
        ValueError: for one that is called more than once.
    """
    calls = count_calls(model, layer, lambda: forward(model, images))
    if calls != 1:
        raise ValueError(f"the defense needs a layer that the model calls once, got {layer!r}, called {calls} times")


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on a device; from pinned memory to a GPU, or the host would wait for all that it has asked of it."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
