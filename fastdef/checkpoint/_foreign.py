"""Weights that other code published: RobustBench, TRADES, MART and their kin, as .pt or .pth."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.checkpoint._foreign_file import choose_weights, read_pickle
from fastdef.checkpoint._tensors import Entry, assemble, compare
from fastdef.nn import check_architecture

_WRAPPER = re.compile(r"(module|model|net|_orig_mod|1)\.")  # "1.": nn.Sequential(normalize, model)
_CONSTANT = re.compile(r"(?:(?:normalize|normalizer|normalization|norm|0)\.)?(?:new_)?(mean|mu|std|sigma)")
_COUNTS = {"n_classes", "num_labels"}  # which MAIR's wrapper keeps as a buffer
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def import_foreign(
    path: str | os.PathLike[str], architecture: Mapping[str, Any], *, weights: str | None = None
) -> nn.Module:
    """A model with the weights of a file that other code wrote, in eval mode.

    The weights may lie under ``state_dict``, ``net``, ``model``, ``best``, ``model_ema`` and the like; keys may carry
    wrappers' prefixes (``module.``, ``model.``, ...); ``num_batches_tracked`` may be missing. Normalization constants
    in the file are taken, so ``fastdef.nn.architecture_of`` of the result is what to save it with.

    Args:
        path: a file of ``torch.save``. It is read with ``weights_only=True``: no code in it runs.
        architecture: what the weights are of, for ``fastdef.nn.build``.
        weights: the name of a set of weights, such as ``best``, needed where the file holds several.

    Raises:
        ValueError: if the file is not such a one, holds several sets of weights and none is named, or naming the first
            tensor that does not fit, is not finite, or has a negative variance.
    """
    try:
        check_architecture(architecture)
        named = _unwrap(choose_weights(read_pickle(path), weights))
        constants = {key: named.pop(key) for key in list(named) if _CONSTANT.fullmatch(key)}
        # TRADES defines the group sub_block1, never calls it, and stores it.
        unused = [key for key in named if key.startswith("sub_block1.") or key in _COUNTS]
        named = {key: value for key, value in named.items() if key not in unused}
        complete = _with_constants(architecture, constants)
        _check_constants(complete)
        model = check_architecture(complete)
        named |= _left_out(model, complete, named)
        compare(model, {k: Entry(tuple(v.shape), v.dtype) for k, v in named.items()}, floats=_FLOATS)
        _check_values(named)
    except (ValueError, RecursionError) as error:  # a pickle may hold itself
        raise ValueError(f"cannot import {path}: {error}") from error
    return assemble(model, named)


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


def _check_values(named: Mapping[str, Tensor]) -> None:
    """Refuse weights of a training that diverged: they would answer, by NaN or by nonsense."""
    for key, value in named.items():
        as_stored = value.to(torch.float32) if value.is_floating_point() else value
        if not bool(torch.isfinite(as_stored).all()):
            wrong = int((~torch.isfinite(as_stored)).sum())
            raise ValueError(f"its tensor {key!r} needs finite numbers, got {wrong} of {value.numel()} that are not")
        if key.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"its tensor {key!r} needs variances of 0 or more, got {float(value.min()):.4g}")


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
