"""The functions behind a source: a name in a package's registry, or code that the caller has named."""

import importlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

_NAME = re.compile(r"\w[\w.]*")  # no "hf-hub:..." and no path: timm would fetch or read those
_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_READING = ("pretrained", "weights", "checkpoint", "cache", "file")  # starts of arguments that fetch or read


def is_registry(source: str) -> bool:
    """Whether a source names a network of a package that a file may ask for."""
    return source.partition(":")[0] in _REGISTRIES


def call(source: str, arguments: Mapping[str, Any]) -> object:
    """What the function behind ``source`` returns; whatever it raises is raised.

    Raises:
        ValueError: if ``source`` is of no such form, its package has no such name, or an argument would read weights.
    """
    package, _, name = source.partition(":")
    if package not in _REGISTRIES:
        return _function(source)(**arguments)
    if reading := [key for key in arguments if key.startswith(_READING)]:
        raise ValueError(f"its arguments need to leave weights alone, got {reading[0]!r}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"needs {package}:NAME, got {source!r}")
    return _REGISTRIES[package](name, arguments)


def _function(source: str) -> Callable[..., object]:
    if not _CODE.fullmatch(source):
        raise ValueError(f"needs timm:NAME, torchvision:NAME or package.module:function, got {source!r}")
    module, _, name = source.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise ValueError(f"{module} has no function {name!r}")
    return function


def _timm(name: str, arguments: Mapping[str, Any]) -> object:
    timm = _package("timm")
    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no network {name!r}")
    return timm.create_model(name, pretrained=False, **arguments)


def _torchvision(name: str, arguments: Mapping[str, Any]) -> object:
    models = _package("torchvision.models")
    if name not in models.list_models(module=models):  # classifiers; the others fetch a backbone's weights
        raise ValueError(f"torchvision has no classifier {name!r}")
    return models.get_model(name, weights=None, **arguments)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises the second
        raise ValueError(f"needs the package {name}, which does not import here ({error})") from error


_REGISTRIES: dict[str, Callable[[str, Mapping[str, Any]], object]] = {"timm": _timm, "torchvision": _torchvision}
