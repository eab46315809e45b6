"""fastdef: a compiled, high-performance defense runtime for image classifiers.

Train a classifier with one of two published defenses, run it defended and in batches, export it whole, and know what
the defense is worth. Images are float tensors (N, C, H, W) in [0, 1] everywhere.
"""

from typing import TYPE_CHECKING, Any

from fastdef._version import VERSION
from fastdef.attacks import fgsm, pgd
from fastdef.checkpoint import Checkpoint, load, save
from fastdef.data import Dataset, load_dataset
from fastdef.defense import ActiveDefense
from fastdef.nn import build, prefix
from fastdef.ops import smoothing_loss, smoothing_loss_and_field

if TYPE_CHECKING:
    from fastdef.api import evaluate, evaluate_adaptive, export_onnx, serve

__version__ = VERSION

__all__ = [
    "ActiveDefense",
    "Checkpoint",
    "Dataset",
    "build",
    "evaluate",
    "evaluate_adaptive",
    "export_onnx",
    "fgsm",
    "load",
    "load_dataset",
    "pgd",
    "prefix",
    "save",
    "serve",
    "smoothing_loss",
    "smoothing_loss_and_field",
]

# fastdef needs torch alone, these need more.
_LATER = ("evaluate", "evaluate_adaptive", "export_onnx", "serve")


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastdef import api

    return getattr(api, name)
