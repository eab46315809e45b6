"""timm without torchvision, which has no build beside every torch: timm needs names of it and runs none of them."""

import importlib.abc
import importlib.util
import sys
import types

import pytest


class _Name(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def import_timm():
    """The package; what it imports of torchvision is empty, and gone again afterwards."""
    finder, before = _Finder(), {name for name in sys.modules if name.startswith("torchvision")}
    sys.meta_path.insert(0, finder)
    try:
        return pytest.importorskip("timm", reason="needs fastdef[test]")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.startswith("torchvision") and name not in before]:
            del sys.modules[name]
