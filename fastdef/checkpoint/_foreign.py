"""Weights that other code published: RobustBench, TRADES, MART and their kin, as .pt or .pth."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.checkpoint._tensors import Entry, assemble, compare
from fastdef.nn import check_architecture

_NESTS = ("state_dict", "model_state_dict", "net", "model")
_WRAPPER = re.compile(r"(module|model|net|_orig_mod|1)\.")  # "1.": nn.Sequential(normalize, model)
_CONSTANT = re.compile(r"(?:(?:normalize|normalizer|normalization|0)\.)?(?:new_)?(mean|mu|std|sigma)")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def import_foreign(path: str | os.PathLike[str], architecture: Mapping[str, Any]) -> nn.Module:
    """A model with the weights of a file that other code wrote, in eval mode.

    The weights may lie under ``state_dict``, ``model_state_dict``, ``net`` or ``model``; keys may carry wrappers'
    prefixes (``module.``, ``model.``, ...); ``num_batches_tracked`` may be missing. Normalization constants in the
    file are taken, so ``fastdef.nn.architecture_of`` of the result is what to save it with.

    Args:
        path: a file of ``torch.save``. It is read with ``weights_only=True``: no code in it runs.
        architecture: what the weights are of, for ``fastdef.nn.build``.

    Raises:
        ValueError: if the file is not such a one, or naming the first key that does not fit.
    """
    try:
        check_architecture(architecture)
        named = _unwrap(_state(_read(path)))
        constants = {key: named.pop(key) for key in list(named) if _CONSTANT.fullmatch(key)}
        # TRADES defines this group, never calls it, and stores it.
        named = {key: value for key, value in named.items() if not key.startswith("sub_block1.")}
        complete = _with_constants(architecture, constants)
        _check_constants(complete)
        model = check_architecture(complete)
        named |= _left_out(model, complete, named)
        compare(model, {k: Entry(tuple(v.shape), v.dtype) for k, v in named.items()}, floats=_FLOATS)
    except ValueError as error:
        raise ValueError(f"cannot import {path}: {error}") from error
    return assemble(model, named)


def _read(path: str | os.PathLike[str]) -> object:
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything, and torch's advice is to trust it
        kind = type(error).__name__
        raise ValueError(f"it is not a file of weights that torch.load(weights_only=True) reads ({kind})") from error


def _state(content: object) -> dict[str, Tensor]:
    """The innermost dictionary of tensors."""
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            return _state(content[nest])
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"it needs to hold a dictionary of tensors, got a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"it needs to hold a dictionary of tensors, got a {type(value).__name__} at {key!r}")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"its tensor {key!r} needs to be dense and stored, got {value.layout} on {value.device}")
    return dict(content)


def _unwrap(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        bare = key
        while wrapper := _WRAPPER.match(bare):
            bare = bare[wrapper.end() :]
        if bare in named:
            raise ValueError(f"it holds {bare!r} twice, the second time as {key!r}")
        named[bare] = value
    return named


def _with_constants(architecture: Mapping[str, Any], constants: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture, with the file's mean and std if it has them."""
    complete = dict(architecture)
    for key, value in constants.items():
        name = "mean" if key.endswith(("mean", "mu")) else "std"
        channels = architecture.get("in_channels", 3)
        if not value.is_floating_point() or value.numel() not in (1, channels):
            raise ValueError(f"its {key!r} needs 1 or {channels} numbers, got shape {tuple(value.shape)} {value.dtype}")
        numbers = value.float().flatten().expand(channels).tolist()
        asked = architecture.get(name)
        if asked is not None and not torch.allclose(torch.tensor(asked), torch.tensor(numbers), atol=1e-4):
            raise ValueError(f"its {key!r} is {numbers}, but the architecture's {name} is {list(asked)}")
        complete[name] = numbers
    return complete


def _check_constants(architecture: Mapping[str, Any]) -> None:
    """DeepMind's networks always normalize, and their files do not hold by what."""
    if architecture["name"].startswith("dm_") and architecture.get("mean") is None:
        raise ValueError(
            "a DeepMind network needs mean and std, which the file lacks; those of CIFAR-10 are "
            "0.4914,0.4822,0.4465 and 0.2471,0.2435,0.2616, those of CIFAR-100 0.5071,0.4865,0.4409 and "
            "0.2673,0.2564,0.2762"
        )


def _left_out(model: nn.Module, architecture: Mapping[str, Any], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the file need not have: the batch counters that old ones lack, and the architecture's constants."""
    state = model.state_dict()
    added = {
        key: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for key, tensor in state.items()
        if key.endswith(".num_batches_tracked") and key not in named
    }
    for name in ("mean", "std"):
        if architecture.get(name) is not None:
            added[f"normalize.{name}"] = torch.tensor(architecture[name]).view(-1, 1, 1)
    return added
