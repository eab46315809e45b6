"""What every public function asks of its input. An error says what was needed and what came, in one line."""

from importlib.util import find_spec
from numbers import Integral, Real

import torch
from torch import Tensor

ROUNDING = 2.0**-23  # of float32 at 1: what a sum or a product that should be 1 may come to
_LARGEST = torch.finfo(torch.float32).max


def check_images(images: Tensor, *, where: str) -> Tensor:
    """Refuse anything but a non-empty (N, C, H, W) floating batch of finite values in [0, 1].

    One rounding of float32 above 1 is clipped.

    Args:
        images: the batch.
        where: the public name the caller used, for the message.

    Returns:
        The batch in [0, 1].

    Raises:
        ValueError: naming the first need that is not met, and what came instead.
    """
    check_batch(images, where=where)
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (low - low == 0.0 and high - high == 0.0):
        raise ValueError(f"{where} needs finite images, got NaN or Inf")
    if low < 0.0 or high > 1.0 + ROUNDING:
        raise ValueError(f"{where} needs images in [0, 1], got values from {low:.9g} to {high:.9g}")
    return images if high <= 1.0 else images.clamp(max=1.0)


def check_batch(images: Tensor, *, where: str) -> None:
    """Refuse anything but a non-empty (N, C, H, W) floating batch, of whatever values.

    Raises:
        ValueError: naming the first need that is not met, and what came instead.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"{where} needs a torch.Tensor of images, got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(f"{where} needs images of shape (N, C, H, W), got {tuple(images.shape)}")
    if images.numel() == 0:
        raise ValueError(f"{where} needs at least one image, got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{where} needs floating-point images in [0, 1], got {images.dtype}; divide uint8 by 255")


def valid_images(images: Tensor) -> Tensor:
    """(N, ...) floats -> (N,) bool: which images are finite and in [0, 1], or a rounding above. NaN fails both."""
    return ((images >= 0) & (images <= 1 + ROUNDING)).flatten(1).all(1)


def check_labels(labels: Tensor, count: int, *, where: str) -> None:
    """Refuse anything but (count,) int64 class indices, none of them negative.

    Raises:
        ValueError: naming the need that is not met, and what came instead.
    """
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"{where} needs ({count},) int64 labels, got {tuple(labels.shape)} {labels.dtype}")
    if count and int(labels.min()) < 0:
        raise ValueError(f"{where} needs labels from 0 up, got {int(labels.min())}")


def check_positive(value: float, *, name: str, where: str) -> None:
    """Refuse a hyperparameter that is not a number above zero which single precision holds.

    Raises:
        ValueError: naming the parameter and what came instead.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= _LARGEST:  # NaN is neither
        raise ValueError(f"{where} needs {name} > 0 and within float32, got {value!r:.80}")


def check_count(value: int, *, name: str, where: str) -> None:
    """Refuse anything but a whole number from 1 up that 32 bits hold.

    Raises:
        ValueError: naming the parameter and what came instead.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value < 2**31:
        raise ValueError(f"{where} needs {name} > 0 and whole, got {value!r:.80}")


SERVER = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")  # what fastdef.serving imports


def check_installed(*names: str, extra: str, where: str) -> None:
    """Refuse to begin what would fail in its midst, for want of a package.

    Args:
        names: of the packages.
        extra: of fastdef, which brings them.
        where: what needs them, for the message.

    Raises:
        ValueError: naming the first that is missing.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"{where} needs {name}: pip install 'fastdef[{extra}]'")
