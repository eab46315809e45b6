"""Models from their description, a dictionary that JSON can hold, and the description from a short name."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastdef.nn._conversions import convert
from fastdef.nn._normalize import Normalize
from fastdef.nn._preact_resnet import PreActResNet18
from fastdef.nn._resnet import ResNet
from fastdef.nn._sizes import check_sizes
from fastdef.nn._wide_resnet import WideResNet

_DEFAULTS = {"num_classes": 10, "in_channels": 3}
_COMMON = {"name", *_DEFAULTS, "mean", "std", "conversions"}
_SIZES: dict[str, set[str]] = {"wide_resnet": {"depth", "width"}, "preact_resnet": {"depth"}, "resnet": {"depth"}}
_OPTIONAL: dict[str, set[str]] = {"resnet": {"width"}}


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """A freshly initialized model.

    Args:
        architecture: ``name`` ("wide_resnet", "preact_resnet" or "resnet"), its sizes (``depth``, and ``width`` for
            a wide one; a "resnet" may have one too), and optionally ``num_classes`` (10), ``in_channels`` (3),
            ``mean`` and ``std`` (lists of one number a channel, or None), ``conversions`` (a list of dictionaries, each
            with the ``name`` of a registered conversion and its arguments, applied in order).

    The dictionary stays with the model, ``num_classes`` and ``in_channels`` in it; see ``architecture_of``.

    Raises:
        ValueError: naming the first key that is missing, unknown or has a value the model refuses.
    """
    _check_keys(architecture)
    model = _plain(architecture)
    for conversion in architecture.get("conversions") or ():
        model = convert(model, conversion)
    object.__setattr__(model, "architecture", copy.deepcopy({**_DEFAULTS, **architecture}))
    return model


def _plain(architecture: Mapping[str, Any]) -> nn.Module:
    name, depth = architecture["name"], architecture["depth"]
    num_classes, in_channels = (architecture.get(key, default) for key, default in _DEFAULTS.items())
    check_sizes(num_classes=num_classes, in_channels=in_channels, where=f"architecture {name!r}")
    normalize = _normalize(architecture.get("mean"), architecture.get("std"), in_channels)
    common: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "normalize": normalize}
    if name == "wide_resnet":
        return WideResNet(depth, architecture["width"], **common)
    if name == "resnet":
        return ResNet(depth, width=architecture.get("width", 64), **common)
    if type(depth) is int and depth == 18:
        return PreActResNet18(**common)
    raise ValueError(f"preact_resnet needs a depth of 18, got {depth!r}")


def architecture_of(model: nn.Module) -> dict[str, Any]:
    """The dictionary that ``build`` made ``model`` from, with every default; a copy.

    Raises:
        ValueError: if it was built in another way.
    """
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, dict):
        raise ValueError(f"architecture_of needs a model made by build, got a {type(model).__name__} that was not")
    return copy.deepcopy(architecture)


def check_architecture(architecture: Mapping[str, Any]) -> nn.Module:
    """Build on the meta device, which allocates nothing: the shapes of every parameter and buffer.

    Raises:
        ValueError: as ``build`` does.
    """
    with torch.device("meta"):
        return build(architecture)


def parse_architecture(
    text: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The dictionary for a name such as ``"wrn-28-10"``, ``"resnet-34"``, ``"resnet-50-16"`` or ``"preactresnet-18"``.

    Raises:
        ValueError: if the name is none of these, or its sizes are not ones that ``build`` accepts.
    """
    architecture: dict[str, Any]
    if wide := re.fullmatch(r"wrn-([0-9]{1,4})-([0-9]{1,4})", text):
        architecture = {"name": "wide_resnet", "depth": int(wide[1]), "width": int(wide[2])}
    elif narrow := re.fullmatch(r"resnet-([0-9]{1,4})-([0-9]{1,4})", text):
        architecture = {"name": "resnet", "depth": int(narrow[1]), "width": int(narrow[2])}
    elif deep := re.fullmatch(r"(resnet|preactresnet)-([0-9]{1,4})", text):
        name = {"resnet": "resnet", "preactresnet": "preact_resnet"}[deep[1]]
        architecture = {"name": name, "depth": int(deep[2])}
    else:
        known = "wrn-DEPTH-WIDTH, resnet-18, resnet-34, resnet-50, resnet-DEPTH-WIDTH, preactresnet-18"
        raise ValueError(f"an architecture is one of {known}; got {text!r}")
    architecture |= {"num_classes": num_classes, "in_channels": in_channels}
    architecture |= {"mean": None if mean is None else list(mean), "std": None if std is None else list(std)}
    check_architecture(architecture)
    return architecture


def _check_keys(architecture: object) -> None:
    if not isinstance(architecture, Mapping):
        raise ValueError(f"an architecture needs to be a dictionary, got a {type(architecture).__name__}")
    name = architecture.get("name")
    if not isinstance(name, str) or name not in _SIZES:
        raise ValueError(f"an architecture needs a name out of {', '.join(_SIZES)}, got {name!r}")
    if missing := _SIZES[name] - architecture.keys():
        raise ValueError(f"architecture {name!r} needs {', '.join(sorted(missing))}")
    if unknown := architecture.keys() - _SIZES[name] - _OPTIONAL.get(name, set()) - _COMMON:
        raise ValueError(f"architecture {name!r} has no {', '.join(sorted(map(repr, unknown)))}")
    conversions = architecture.get("conversions")
    if conversions is not None and not isinstance(conversions, (list, tuple)):
        raise ValueError(f"an architecture's conversions need to be a list, got {conversions!r}")


def _normalize(mean: Any, std: Any, in_channels: int) -> Normalize | None:
    if mean is None and std is None:
        return None
    for name, values in {"mean": mean, "std": std}.items():
        numbers = isinstance(values, (list, tuple)) and all(type(v) in (int, float) for v in values)
        if not numbers or len(values) != in_channels:
            raise ValueError(f"an architecture needs {name} as a list of {in_channels} numbers, got {values!r}")
    return Normalize(mean, std)
