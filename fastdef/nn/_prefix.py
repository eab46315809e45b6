"""A model up to one of its layers: what the Active Defense differentiates, without the rest of the network."""

import threading
from typing import Any

from torch import Tensor, nn

from fastdef.nn._layers import check_features, find_layer, hooked


def prefix(model: nn.Module, layer: str) -> nn.Module:
    """The part of ``model`` that computes the output of ``layer``: images in, features out.

    Works for any module, Python control flow included: it runs ``model`` and leaves it the moment ``layer`` has its
    output, so nothing after it executes. A layer that the model calls more than once stops at its first call.
    Gradients flow as in the model, and ``make_fx`` traces it. Other threads may run the model, or other prefixes
    of it, at the same time.

    The prefix refers to ``model`` and owns nothing: its ``parameters()`` and ``state_dict()`` are empty, and the
    model's weights, device and training mode are what the call finds.

    Args:
        model: any classifier.
        layer: dotted name of a submodule, such as ``"block1"`` or ``"block1.layer.0"``.

    Returns:
        A module whose forward takes what the model's takes and returns the (N, ...) output of ``layer``.

    Raises:
        ValueError: if ``model`` has no such layer. On call: if the layer is never reached, or its output is not one
            (N, ...) tensor.
    """
    find_layer(model, layer, where="prefix")
    return _Prefix(model, layer)


class _Reached(BaseException):  # not an Exception: a model that catches those must not catch this
    """Carries the features out of the model's call stack."""

    def __init__(self, call: object, features: object) -> None:
        super().__init__()
        self.call = call
        self.features = features


class _Prefix(nn.Module):
    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self._reference = (model,)  # in a tuple, nn.Module does not register it as a child
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (model,) = self._reference
        thread = threading.get_ident()
        call = object()

        def stop(module: nn.Module, inputs: object, output: object) -> None:
            if threading.get_ident() == thread:
                raise _Reached(call, output)

        # Found anew on each call, because a conversion may have replaced the layer.
        layer = find_layer(model, self.layer, where="prefix")
        try:
            with hooked(layer, stop):
                model(*args, **kwargs)
        except _Reached as reached:
            if reached.call is not call:
                raise
            return check_features(reached.features, self.layer, where="prefix")
        raise ValueError(f"prefix needs a layer that the model calls, but its forward never reached {self.layer!r}")

    def extra_repr(self) -> str:
        return f"{type(self._reference[0]).__name__} up to {self.layer!r}"
