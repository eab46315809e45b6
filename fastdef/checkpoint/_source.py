"""Networks that ``fastdef.nn.build`` does not know: the function that makes one and its arguments, as a description.

A source is ``timm:resnet50``, ``torchvision:resnet50`` or ``package.module:function``. The first two are names in the
registry of a package, so a file may ask for them. The third is code, and runs only where the caller has named it.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastdef.checkpoint._packages import call, is_registry
from fastdef.nn import Normalize, architecture_of, check_architecture, conversions_of, convert

_KEYS = {"source", "source_args", "num_classes", "in_channels", "mean", "std", "conversions"}
_LARGEST = 65536  # of a number in the arguments of a registry's network
_LONGEST = 64  # of a list: a stranger's file must not build without end


def describe(
    model: nn.Module, *, source: str, source_args: Mapping[str, Any] | None, classes: Sequence[str]
) -> dict[str, Any]:
    """What a model file keeps of a network from ``source``, in place of what ``fastdef.nn.build`` takes.

    ``nn.Sequential(Normalize(mean, std), network)`` is described too: the source makes the network alone.

    Raises:
        ValueError: if there are not as many classes as the network says it has.
    """
    network, mean, std = model, None, None
    if isinstance(model, nn.Sequential) and len(model) == 2 and isinstance(model[0], Normalize):
        network = model[1]
        mean, std = (value.flatten().tolist() for value in (model[0].mean, model[0].std))
    counted = getattr(network, "num_classes", len(classes))
    if isinstance(counted, int) and counted != len(classes):
        raise ValueError(f"a network of {counted} classes needs as many names, got {len(classes)}")
    convolutions = (module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    return {
        "source": source,
        "source_args": dict(source_args or {}),
        "num_classes": len(classes),
        "in_channels": next(convolutions, 3),
        "mean": mean,
        "std": std,
        "conversions": conversions_of(model),
    }


def outline(architecture: Mapping[str, Any], *, source: str | None) -> nn.Module:
    """The network of a description, on the meta device unless code of the caller's own makes it.

    Args:
        architecture: for ``fastdef.nn.build``, or made by ``describe``.
        source: what the caller has named; it takes the place of the description's own.

    Raises:
        ValueError: if the description is not one, its package is not there, or its code was not named by the caller.
    """
    if "source" not in architecture:
        if source is not None:
            named = architecture.get("name")
            raise ValueError(f"it is a {named!r} of fastdef's own, which takes no source, got {source!r}")
        return check_architecture(architecture)
    _check(architecture)
    named = architecture["source"]
    if source is None and not is_registry(named):
        raise ValueError(
            f"code of your own builds it, which runs only where you name it: if you trust {named}, pass "
            f"source={named!r}, on the command line --source {named}"
        )
    described = {**architecture, "source": source or named}
    return _build(described, device="meta" if is_registry(described["source"]) else "cpu")


def with_memory(model: nn.Module) -> nn.Module:
    """The network of ``outline``, ready to take the tensors of a file that fits it.

    That of a registry is built again: a constructor may keep what no state dict holds.
    """
    architecture = architecture_of(model)
    if "source" not in architecture or not is_registry(architecture["source"]):
        return model
    return _build(architecture, device="cpu")


def _build(architecture: Mapping[str, Any], *, device: str) -> nn.Module:
    source = architecture["source"]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        try:
            model = call(source, copy.deepcopy(architecture["source_args"]))
        except Exception as error:  # code of others may raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"its source {source!r} builds no network: {reason}") from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"its source {source!r} needs to return a network, got a {type(model).__name__}")
        if architecture["mean"] is not None:
            model = nn.Sequential(Normalize(architecture["mean"], architecture["std"]), model)
        for conversion in architecture["conversions"][len(conversions_of(model)) :]:  # its source may have made some
            model = convert(model, conversion)
    object.__setattr__(model, "architecture", copy.deepcopy(dict(architecture)))
    return model


def _check(architecture: Mapping[str, Any]) -> None:
    """Refuse a description that ``describe`` would not make; ``Normalize`` and ``convert`` check what they take."""
    if architecture.keys() != _KEYS:
        raise ValueError(f"a source's description needs {', '.join(sorted(_KEYS))}, got {sorted(architecture)}")
    kinds = {"source": str, "source_args": dict, "num_classes": int, "in_channels": int, "conversions": list}
    for key, kind in kinds.items():
        if not isinstance(architecture[key], kind):
            raise ValueError(f"a source's {key} needs to be a {kind.__name__}, got {architecture[key]!r}")
    for key in ("mean", "std"):
        numbers = architecture[key]
        if numbers is not None and not (isinstance(numbers, list) and all(type(n) in (int, float) for n in numbers)):
            raise ValueError(f"a source's {key} needs to be a list of numbers, got {numbers!r}")
    if (architecture["mean"] is None) != (architecture["std"] is None):
        raise ValueError("a source's mean and std go together, got one of them")
    _check_size(architecture["source_args"])


def _check_size(value: object) -> None:
    if isinstance(value, (dict, list)):
        if len(value) > _LONGEST:
            raise ValueError(f"a source's arguments need lists of {_LONGEST} at most, got {len(value)}")
        for item in value.values() if isinstance(value, dict) else value:
            _check_size(item)
    elif isinstance(value, (int, float)) and abs(value) > _LARGEST:
        raise ValueError(f"a source's arguments need numbers up to {_LARGEST}, got {value}")
