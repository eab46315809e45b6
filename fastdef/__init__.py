"""fastdef: a compiled, high-performance defense runtime for image classifiers.

Train a classifier with one of two published defenses, run it defended and in batches, export it whole, and know what
the defense is worth. Images are float tensors (N, C, H, W) in [0, 1] everywhere.
"""

from fastdef.attacks import fgsm, pgd
from fastdef.checkpoint import Checkpoint, load, save
from fastdef.defense import ActiveDefense
from fastdef.nn import build, prefix
from fastdef.ops import smoothing_loss, smoothing_loss_and_field

__version__ = "0.1.0"

__all__ = [
    "ActiveDefense",
    "Checkpoint",
    "build",
    "fgsm",
    "load",
    "pgd",
    "prefix",
    "save",
    "smoothing_loss",
    "smoothing_loss_and_field",
]
