"""The configuration in a model file: JSON under one metadata key, written by us and read from strangers."""

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = 1
KEY = "fastdef"  # of the metadata

_KEYS = {"format", "fastdef", "architecture", "classes", "defense", "training"}


def write_config(
    *,
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    defense: Mapping[str, Any] | None,
    training: Mapping[str, Any] | None,
) -> str:
    """The JSON text.

    Raises:
        ValueError: if something in it is not what ``read_config`` accepts, or not what JSON can hold.
    """
    config = {
        "format": FORMAT,
        "fastdef": _version(),
        "architecture": dict(architecture),
        "classes": list(classes),
        "defense": None if defense is None else dict(defense),
        "training": None if training is None else dict(training),
    }
    try:
        text = json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a model file's configuration needs to be what JSON can hold: {error}") from error
    read_config(text)
    return text


def read_config(text: str) -> dict[str, Any]:
    """The configuration, its outer structure checked; ``build`` checks the architecture in it.

    Raises:
        ValueError: naming the first thing that is not as it needs to be, and what came instead.
    """
    try:
        config = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its configuration is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"its configuration needs to be an object, got a {type(config).__name__}")
    version = config.get("format")
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"its format version is {_short(version)}, and this fastdef reads {FORMAT}")
    if config.keys() != _KEYS:
        wrong = min(config.keys() ^ _KEYS)
        raise ValueError(f"its configuration {'lacks' if wrong in _KEYS else 'has an unknown'} {_short(wrong)}")
    architecture, classes = config["architecture"], config["classes"]
    if not isinstance(architecture, dict):
        raise ValueError(f"its architecture needs to be an object, got {_short(architecture)}")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"its classes need to be a list of names, got {_short(classes)}")
    if len(classes) != architecture.get("num_classes", 10):
        got = f"{len(classes)} names for {_short(architecture.get('num_classes', 10))} classes"
        raise ValueError(f"its classes need one name each, got {got}")
    for key in ("defense", "training"):
        if config[key] is not None and not isinstance(config[key], dict):
            raise ValueError(f"its {key} needs to be an object or null, got {_short(config[key])}")
    return config


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_short(text)} is not a finite number")
    return value


def _short(value: object) -> str:
    """A stranger's value as part of one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _version() -> str:
    try:
        return importlib.metadata.version("fastdef")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
