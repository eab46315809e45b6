"""A file that other code wrote with ``torch.save``: read as data, and the set of weights in it that is meant."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_PLAIN = ("state_dict", "model_state_dict", "net", "model", "rmodel", "last", "best")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_GLOBAL = re.compile(r"GLOBAL (\S+)")


class _Inert:
    """Stands for an object that is not weights: it takes whatever it is made of, and holds nothing."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


# What training scripts keep beside the weights: their options, losses and paths. None of these runs here.
_INERT = [
    "argparse.Namespace",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
]


def read_pickle(path: str | os.PathLike[str]) -> object:
    """What a file of ``torch.save`` holds; no code in it runs, and what a training script kept beside is left empty.

    Raises:
        ValueError: if there is no such file, it is not one, or naming a global that is neither weights nor inert.
    """
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _INERT]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything, and torch's advice is to trust it
        if named := _GLOBAL.search(str(error)):
            raise ValueError(
                f"its pickle asks for {named[1]}, which is neither weights nor inert data, and nothing of it was run; "
                "save the state dict alone where the file was made"
            ) from error
        kind = type(error).__name__
        raise ValueError(f"it is not a file of weights that torch.load(weights_only=True) reads ({kind})") from error


def choose_weights(content: object, weights: str | None) -> dict[str, Tensor]:
    """The set of weights called ``weights``, such as ``best`` or ``model.state_dict``, or the only one.

    Raises:
        ValueError: if there are several and none is named, there is no such one, or it holds anything but tensors.
    """
    sets = _sets(content)
    if weights is None and len(sets) > 1:
        first = next(iter(sets))
        raise ValueError(
            f"it holds several sets of weights, {', '.join(sets)}; choose one, such as weights={first!r}, on the "
            f"command line --weights {first}"
        )
    if weights is not None and weights not in sets:
        raise ValueError(f"it needs to hold weights called {weights!r}, got {', '.join(sets) or 'none'}")
    return _tensors(next(iter(sets.values()), content) if weights is None else sets[weights])


def _sets(content: object, path: str = "") -> dict[str, object]:
    """Every innermost dictionary that has a tensor in it, by its dotted path; the outermost has none, ''."""
    if not isinstance(content, Mapping):
        return {}
    inner: dict[str, object] = {}
    for name in (*_PLAIN, *_AVERAGED):
        inner |= _sets(content.get(name), f"{path}.{name}" if path else name)
    if inner or not any(isinstance(value, Tensor) for value in content.values()):
        return inner
    return {path: content}


def _tensors(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"it needs to hold a dictionary of tensors, got a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"it needs to hold a dictionary of tensors, got a {type(value).__name__} at {key!r}")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"its tensor {key!r} needs to be dense and stored, got {value.layout} on {value.device}")
    return dict(content)
