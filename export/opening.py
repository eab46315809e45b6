"""Which engine runs a file of an export: the providers a caller names, and a session for each file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdef.export.openvino_session import OpenVINOSession
from fastdef.export.pt2 import Pt2Session
from fastdef.export.sessions import InferenceSession, OnnxSession, Provider, TensorRTSession

CPU = ("CPUExecutionProvider",)
_OWN = {"TensorRT": ".engine", "OpenVINO": ".xml", "PT2": ".pt2"}  # engines that are no provider of ONNX Runtime


def named(providers: Sequence[Provider]) -> list[tuple[str, dict[str, Any]]]:
    """Names and options.

    Raises:
        ValueError: if they are no names, or pairs of a name and options; or an engine of its own is not alone.
    """
    if isinstance(providers, str) or not providers:
        raise ValueError(f"load_engine needs a sequence of at least one provider, got {providers!r}")
    pairs = [(provider, {}) if isinstance(provider, str) else provider for provider in providers]
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f"a provider is a name, or a name with options in a pair, got {pair!r}")
        if not isinstance(pair[1], Mapping):
            raise ValueError(f"the options of {pair[0]} need to be a mapping, got {pair[1]!r}")
    own = [name for name, _ in pairs if name in _OWN]
    if own and len(pairs) > 1:
        raise ValueError(f"{own[0]} is an engine of its own and comes alone, got {', '.join(n for n, _ in pairs)}")
    return [(name, dict(options)) for name, options in pairs]


def file_for(folder: Path, stem: str, providers: Sequence[Provider]) -> Path:
    """The file of an export that the first provider runs."""
    ending = _OWN.get(named(providers)[0][0], ".onnx")
    file = folder / f"{stem}{ending}"
    if ending == ".xml" and not file.is_file():
        return folder / f"{stem}.onnx"  # which OpenVINO takes as it is
    return file


def open_session(
    file: Path, providers: Sequence[Provider], *, spinning: bool, graphed: bool = False
) -> InferenceSession:
    """A session for a file, in the engine that the file is for or that is named.

    Args:
        file: of an export.
        providers: see :func:`load_engine`.
        graphed: whether its runs are to be CUDA graphs.
        spinning: whether idle threads of ONNX Runtime wait busily: a little faster where nothing else needs the cores.

    Raises:
        ValueError: if the engine is not to be had here, or refuses the file.
    """
    pairs = named(providers)
    name, options = pairs[0]
    if name in ("TensorRT", "PT2") and options:
        raise ValueError(f"{name} has no options, got {', '.join(options)}")
    if name == "TensorRT" or file.suffix == ".engine":
        return TensorRTSession(file, graphed=graphed)
    if name == "OpenVINO" or file.suffix == ".xml":
        return OpenVINOSession(file, options if name == "OpenVINO" else None)
    if name == "PT2" or file.suffix == ".pt2":
        return Pt2Session(file)
    return OnnxSession(file, pairs, spinning=spinning, graphed=graphed)
