"""What turns a plain network into a defended one: conversions, known by name so that a model file can list them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Conversion = Callable[..., nn.Module]

_CONVERSIONS: dict[str, Conversion] = {}


def register_conversion(name: str) -> Callable[[Conversion], Conversion]:
    """Decorator: make ``function(model, **arguments) -> model`` known to ``build`` as the conversion ``name``.

    The arguments must be what JSON can hold. What the conversion adds to the model must be parameters or persistent
    buffers, because a model file holds those alone and is loaded into a model built on the meta device. The arguments
    may come from a stranger's file: the conversion must refuse (``ValueError``) those that would build without end.
    """

    def register(function: Conversion) -> Conversion:
        _CONVERSIONS[name] = function
        return function

    return register


def convert(model: nn.Module, conversion: Mapping[str, Any]) -> nn.Module:
    """Apply one entry of an architecture's ``conversions``: the registered ``name``, with the rest as arguments.

    Raises:
        ValueError: if the name is unknown, or the conversion refuses its arguments.
    """
    name = conversion.get("name") if isinstance(conversion, Mapping) else None
    if not isinstance(name, str) or name not in _CONVERSIONS:
        known = ", ".join(_CONVERSIONS) or "none"
        raise ValueError(f"a conversion needs a registered name (known: {known}), got {conversion!r}")
    arguments = {str(key): value for key, value in conversion.items() if key != "name"}
    try:
        return _CONVERSIONS[name](model, **arguments)
    except TypeError as error:
        raise ValueError(f"conversion {name!r} refuses its arguments {arguments}: {error}") from error
