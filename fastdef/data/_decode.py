"""Encoded images to uint8 tensors: the one decoder of all ways in."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fastdef.data._errors import one_line
from fastdef.data._parts import NotShown
from fastdef.data._picture import Colour, Picture
from fastdef.data._read import MOST_PIXELS

READ = "PNG, JPEG, WebP, BMP or PNM"
Array = np.ndarray[Any, Any]

_PART, _PARTS = 128, 32  # images a task, tasks under way


class Decoder:
    """Encoded images to what a viewer shows: one for files, trees, parquet and requests; for several threads too.

    Orientation is applied, colour profiles are converted to sRGB. Refused is what has no one picture: animations,
    pixels that are not opaque, colours that viewers do not agree on.

    Args:
        background: colour to put under what is not opaque, by a name or as "#rrggbb".

    Raises:
        ValueError: for what is no opaque colour.
    """

    def __init__(self, background: str | None = None) -> None:
        self.background = None if background is None else _colour(background)
        self._counts: Counter[str] = Counter()
        self._lock = Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to how many images so far, a line for each kind."""
        return tuple(f"{count} {_images(count)} {kind}" for kind, count in sorted(self.counts.items()))

    @property
    def counts(self) -> dict[str, int]:
        """How many images were treated in each way so far."""
        with self._lock:
            return dict(self._counts)

    def note(self, treatments: Iterable[str]) -> None:
        """Count what was done to an image."""
        with self._lock:
            self._counts.update(treatments)

    def decode(self, encoded: bytes, *, mode: str, name: str, size: tuple[int, int] | None = None) -> Tensor:
        """One PNG, JPEG, WebP, BMP or PNM -> (C, H, W) uint8.

        Raises:
            ValueError: naming ``name``, if it is not one whole picture of a sane size; before it is decoded, if it is
                not of ``size`` (H, W) where one is given.
        """
        with _no_warnings():
            return _to_tensor(self._array(encoded, mode, name, size)[None])[0]

    def decode_all(
        self,
        encoded: Iterable[tuple[str, bytes]],
        count: int,
        *,
        mode: str,
        size: int | None = None,
        scale_to: int | None = None,
    ) -> Tensor:
        """``count`` (name, bytes) pairs -> (N, C, H, W) uint8, on a few threads; Pillow lets go of the interpreter.

        With ``scale_to`` every image is scaled to so many pixels square, and their sizes may differ.

        Raises:
            ValueError: for a broken image, or one that is not ``size`` pixels square, or without ``size`` not of the
                first one's; naming it.
        """
        source = iter(encoded)
        shape: tuple[int, ...] | None = None
        out: Array | None = None
        done = 0
        # One filter for all threads: warnings' filters are the process's, and threads would restore them out of order.
        with _no_warnings(), ThreadPoolExecutor() as pool:
            while parts := [part for _ in range(_PARTS) if (part := list(islice(source, _PART)))]:
                for part, arrays in zip(
                    parts, pool.map(lambda part: self._part(part, mode, scale_to), parts), strict=True
                ):
                    shape = shape or _first_size(part[0][0], arrays[0], size)
                    _check_sizes(part, arrays, shape)
                    if out is None:
                        out = np.empty((count, *arrays[0].shape), dtype=np.uint8)
                    out[done : done + len(arrays)] = arrays
                    done += len(arrays)
        if out is None:
            raise ValueError("a data set needs at least one image, got none")
        return _to_tensor(out)

    def _part(self, part: list[tuple[str, bytes]], mode: str, scale_to: int | None) -> list[Array]:
        arrays = (self._array(encoded, mode, name) for name, encoded in part)
        return list(arrays) if scale_to is None else [_scaled(array, scale_to) for array in arrays]

    def _array(self, encoded: bytes, mode: str, name: str, size: tuple[int, int] | None = None) -> Array:
        """(H, W) or (H, W, 3) uint8."""
        with _named(name, encoded):
            picture = Picture(encoded)
        _check_size(name, picture.size, size)
        with _named(name, encoded):
            array = np.array(picture.shown(mode, self.background))
        self.note(picture.treatments)
        return array


def is_gray(encoded: bytes, *, name: str) -> bool:
    """Whether an image has no colours.

    Raises:
        ValueError: naming ``name``, if it is not one whole picture.
    """
    with _no_warnings(), _named(name, encoded):
        return Picture(encoded).gray


@contextmanager
def _named(name: str, encoded: bytes) -> Iterator[None]:
    """Whatever is raised within is a ValueError on ``name``: on damaged input Pillow raises what it stumbles over."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except NotShown as error:
        raise ValueError(f"{name} {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a whole {READ}, got {len(encoded)} bytes of something else") from error
    except Exception as error:
        raise ValueError(f"{name} is not a whole {READ}: {one_line(error)}") from error


def _check_size(name: str, got: tuple[int, int], size: tuple[int, int] | None) -> None:
    height, width = got
    if size is not None and size != got:
        scaled = "scale it, or have it scaled: --resize, in Python resize=True"
        raise ValueError(f"{name} needs to be {size[0]} x {size[1]} pixels, got {height} x {width}: {scaled}")
    if height * width > MOST_PIXELS:
        raise ValueError(f"{name} needs at most {MOST_PIXELS} pixels, got {width} x {height}")


def _images(count: int) -> str:
    return "image was" if count == 1 else "images were"


def _colour(text: str) -> Colour:
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(text)  # type: ignore[misc]  # of four, the last is alpha
    except ValueError as error:
        needed = "an opaque colour, such as white or #ffffff"
        raise ValueError(f"a background needs to be {needed}, got {text!r:.80}") from error
    return red, green, blue


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns of large images, for which we have our own bound, and of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_size(name: str, array: Array, size: int | None) -> tuple[int, ...]:
    if size is not None and array.shape[:2] != (size, size):
        raise ValueError(f"{name} needs {size} x {size} pixels, got {array.shape[0]} x {array.shape[1]}")
    return array.shape[:2]


def _check_sizes(part: list[tuple[str, bytes]], arrays: list[Array], size: tuple[int, ...]) -> None:
    for (name, _), array in zip(part, arrays, strict=True):
        if array.shape[:2] != size:
            raise ValueError(f"{name} needs the size of the images before it, got {array.shape[:2]} after {size}")


def _scaled(array: Array, size: int) -> Array:
    """(H, W) or (H, W, 3) uint8 -> the same, ``size`` pixels square; as decode_image scales, rounded."""
    if array.shape[:2] == (size, size):
        return array
    image = scale(_to_tensor(array[None])[0].float() / 255, (size, size))
    pixels = (image * 255).round().to(torch.uint8)
    return (pixels[0] if array.ndim == 2 else pixels.permute(1, 2, 0)).numpy()


def scale(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) floats in [0, 1] -> the same of another size (H, W): bilinear, antialiased."""
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _to_tensor(arrays: Array) -> Tensor:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W), contiguous."""
    images = torch.from_numpy(arrays)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
