"""Models from their description, a dictionary that JSON can hold, and the description from a short name."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastdef.nn._conversions import convert
from fastdef.nn._dm_preact_resnet import DMPreActResNet
from fastdef.nn._dm_wide_resnet import DMWideResNet
from fastdef.nn._normalize import Normalize
from fastdef.nn._preact_resnet import PreActResNet18
from fastdef.nn._resnet import ResNet
from fastdef.nn._sizes import check_sizes
from fastdef.nn._wide_resnet import WideResNet

_DEFAULTS = {"num_classes": 10, "in_channels": 3}
_COMMON = {"name", *_DEFAULTS, "mean", "std", "conversions"}
_SIZES: dict[str, set[str]] = {
    "wide_resnet": {"depth", "width"},
    "preact_resnet": {"depth"},
    "resnet": {"depth"},
    "dm_wide_resnet": {"depth", "width"},
    "dm_preact_resnet": {"depth"},
}
_OPTIONAL: dict[str, set[str]] = {
    "resnet": {"width"},
    "dm_wide_resnet": {"activation"},
    "dm_preact_resnet": {"activation"},
}
_DEPTH, _WIDTH, _RELU = r"-(?P<depth>[0-9]{1,4})", r"-(?P<width>[0-9]{1,4})", r"(-(?P<activation>relu))?"
_SHORT = {
    "wide_resnet": f"wrn{_DEPTH}{_WIDTH}",
    "resnet": f"resnet{_DEPTH}({_WIDTH})?",
    "preact_resnet": f"preactresnet{_DEPTH}",
    "dm_wide_resnet": f"dm-wrn{_DEPTH}{_WIDTH}{_RELU}",
    "dm_preact_resnet": f"dm-preactresnet{_DEPTH}{_RELU}",
}
_KNOWN = (
    "wrn-DEPTH-WIDTH, resnet-18, resnet-34, resnet-50, resnet-DEPTH-WIDTH, preactresnet-18, dm-wrn-DEPTH-WIDTH, "
    "dm-preactresnet-DEPTH; behind the dm- ones also -relu, in place of SiLU"
)


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """A freshly initialized model.

    Args:
        architecture: ``name`` ("wide_resnet", "preact_resnet", "resnet", "dm_wide_resnet" or "dm_preact_resnet"),
            its sizes (``depth``, and ``width`` for a wide one; a "resnet" may have one too), and optionally
            ``activation`` of a DeepMind one ("silu", or "relu"), ``num_classes`` (10), ``in_channels`` (3), ``mean``
            and ``std`` (lists of one number a channel, or None), ``conversions`` (a list of dictionaries, each with
            the ``name`` of a registered conversion and its arguments, applied in order).

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
    activation = architecture.get("activation", "silu")
    if name == "dm_wide_resnet":
        return DMWideResNet(depth, architecture["width"], activation=activation, **common)
    if name == "dm_preact_resnet":
        return DMPreActResNet(depth, activation=activation, **common)
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
    """The dictionary for a name such as ``"wrn-28-10"``, ``"resnet-34"``, ``"preactresnet-18"`` or ``"dm-wrn-28-10"``.

    Raises:
        ValueError: if the name is none of these, or its sizes are not ones that ``build`` accepts.
    """
    forms = [(name, match) for name, form in _SHORT.items() if (match := re.fullmatch(form, text))]
    if not forms:
        raise ValueError(f"an architecture is one of {_KNOWN}; got {text!r}")
    ((name, match),) = forms
    parts = {key: part for key, part in match.groupdict().items() if part is not None}
    architecture: dict[str, Any] = {"name": name}
    architecture |= {key: part if key == "activation" else int(part) for key, part in parts.items()}
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
