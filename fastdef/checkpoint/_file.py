"""The model file: one .safetensors with the tensors, and the configuration in its metadata."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.checkpoint._config import KEY, read_config, write_config
from fastdef.checkpoint._hub import fetch, is_on_hub
from fastdef.checkpoint._source import describe, outline, with_memory
from fastdef.checkpoint._tensors import Entry, assemble, compare
from fastdef.io import atomic_write
from fastdef.nn import architecture_of

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I64": torch.int64}


@dataclass(frozen=True)
class Checkpoint:
    """What a model file holds.

    Attributes:
        model: in eval mode, float32 whatever the file stores, on the device asked for.
        architecture: what ``fastdef.nn.build`` made the model from, with every default; or its source, that one's
            arguments, ``num_classes``, ``in_channels``, ``mean``, ``std`` and ``conversions``.
        classes: the name of each class.
        defense: the defense's configuration, or None.
        training: how it was trained, or None.
    """

    model: nn.Module
    architecture: dict[str, Any]
    classes: tuple[str, ...]
    defense: dict[str, Any] | None
    training: dict[str, Any] | None


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    classes: Sequence[str],
    architecture: Mapping[str, Any] | None = None,
    source: str | None = None,
    source_args: Mapping[str, Any] | None = None,
    defense: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a model file, whole or not at all: see ``atomic_write``. The same content gives the same bytes.

    Args:
        path: where; by custom it ends in ``.safetensors``.
        model: one that ``architecture`` describes, not wrapped (DDP, torch.compile); floats of 16 or 32 bits.
        classes: one name a class.
        architecture: for ``fastdef.nn.build``, or of a model that ``load`` gave; this or a source is needed.
        source: of a network that ``build`` does not know: ``timm:NAME``, ``torchvision:NAME``, or
            ``package.module:function`` for a function that returns it. It is called, to see that it does. A
            ``nn.Sequential(Normalize(mean, std), network)`` is taken too.
        source_args: its keyword arguments, anything JSON can hold.
        defense: anything JSON can hold, or None.
        training: anything JSON can hold, or None.

    Raises:
        ValueError: if these do not fit each other, or the file cannot be written; a file of that name is untouched.
    """
    from safetensors.torch import save as serialize  # importing fastdef needs torch alone

    if (architecture is None) == (source is None):
        raise ValueError(f"saving {path} needs an architecture or a source, got {'none' if source is None else 'both'}")
    state = model.state_dict()
    try:
        described = architecture or describe(model, source=str(source), source_args=source_args, classes=classes)
        config = write_config(architecture=described, classes=classes, defense=defense, training=training)
        expected = outline(read_config(config)["architecture"], source=source or _named_before(model))
        compare(expected, {k: Entry(tuple(v.shape), v.dtype) for k, v in state.items()})
    except ValueError as error:
        raise ValueError(f"cannot save a {type(model).__name__} as {path}: {error}") from error
    # A copy each, because safetensors takes neither shared nor strided memory.
    tensors = {k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for k, v in state.items()}
    with atomic_write(path) as temporary:
        # Not save_file, which replaces the file by one that nobody but its owner may read.
        temporary.write_bytes(serialize(tensors, metadata={KEY: config}))


def load(path: str | os.PathLike[str], *, device: str | torch.device = "cpu", source: str | None = None) -> Checkpoint:
    """Read a model file. Nothing in it is executed, and nothing allocated before its shapes are known to fit.

    Args:
        path: a file that ``save`` wrote; or one of the Hugging Face hub, ``hf://user/model``, with ``@revision`` or
            ``/file.safetensors`` behind it where those are not ``main`` and ``model.safetensors``.
        device: where the model goes.
        source: ``package.module:function`` to build the network with, where the file says that code of one's own
            does. It is imported and called with the file's arguments; what the file names never is.

    Raises:
        ValueError: in one line, if the file is anything else, is damaged, needs a source, or the device is not there.
    """
    path = fetch(path) if is_on_hub(path) else path
    _check_kind(path)
    try:
        config, model = _read(path, source)
    except (ValueError, RecursionError) as error:  # a configuration may nest deeper than Python prints
        raise ValueError(f"cannot load {path}: {_one_line(error)}") from error
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the second
        raise ValueError(f"cannot move {path} to device {str(device)!r}: {_one_line(error)}") from error
    classes = tuple(config["classes"])
    return Checkpoint(model, architecture_of(model), classes, config["defense"], config["training"])


def _check_kind(path: str | os.PathLike[str]) -> None:
    if Path(path).is_dir():
        raise ValueError(f"cannot load {path}: it is a folder, and not a model file")
    if not Path(path).is_file():
        raise ValueError(f"cannot load {path}: there is no such file")
    try:
        with Path(path).open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"cannot load {path}: {error.strerror}") from error
    # What torch.save writes: a zip archive, or before torch 1.6 a bare pickle. A .safetensors begins with a length,
    # whose bytes may happen to be the same, and then the brace that opens its header.
    if start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):
        raise ValueError(f"cannot load {path}: it is a pickle, and those are never loaded; see `fastdef import`")


def _named_before(model: nn.Module) -> str | None:
    """The source of a model that ``load`` gave: whoever holds it has named its code."""
    architecture = getattr(model, "architecture", None)
    return architecture.get("source") if isinstance(architecture, dict) else None


def _read(path: str | os.PathLike[str], source: str | None) -> tuple[dict[str, Any], nn.Module]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise ValueError("it is a .safetensors file, but without fastdef's configuration")
            config = read_config(text)
            model = outline(config["architecture"], source=source)
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
            compare(model, {key: Entry(tuple(s.get_shape()), _dtype(key, s.get_dtype())) for key, s in slices.items()})
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in slices}
            return config, assemble(with_memory(model), tensors)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it is not a whole .safetensors file ({_one_line(error)})") from error


def _dtype(key: str, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"its tensor {key!r} needs to be of {', '.join(_DTYPES)}, got {name}")
    return _DTYPES[name]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]  # a message may quote a stranger's file
