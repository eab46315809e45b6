"""Encoded images to uint8 tensors."""

import io
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdef.data._errors import one_line

Array = np.ndarray[Any, Any]

_MOST_PIXELS = 64 * 1024 * 1024  # a picture of 8,192 x 8,192; more is a bomb
MOST_BYTES = 8 * _MOST_PIXELS  # of which, at 16 bits and four channels, that many are
_PART, _PARTS = 128, 32  # images a task, tasks under way


def read_bytes(file: Path) -> bytes:
    """The content of a file.

    Raises:
        ValueError: if it cannot be read, or is absurdly large; naming it.
    """
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{file} needs at most {MOST_BYTES} bytes, got {size}")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} needs to be a readable file: {error.strerror or one_line(error)}") from error


def decode(encoded: bytes, *, mode: str, name: str, size: tuple[int, int] | None = None) -> Tensor:
    """One PNG or JPEG -> (C, H, W) uint8.

    Raises:
        ValueError: naming ``name``, if it is not a whole image of a sane size; before it is decoded, if it is not of
            ``size`` (H, W) where one is given.
    """
    with _no_warnings():
        return _to_tensor(_decode(encoded, mode, name, size)[None])[0]


def decode_all(encoded: Iterable[tuple[str, bytes]], count: int, *, mode: str, size: int | None = None) -> Tensor:
    """``count`` (name, bytes) pairs -> (N, C, H, W) uint8, on a few threads; Pillow lets go of the interpreter.

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
            for part, arrays in zip(parts, pool.map(lambda part: _decode_part(part, mode), parts), strict=True):
                shape = shape or _first_size(part[0][0], arrays[0], size)
                _check_sizes(part, arrays, shape)
                if out is None:
                    out = np.empty((count, *arrays[0].shape), dtype=np.uint8)
                out[done : done + len(arrays)] = arrays
                done += len(arrays)
    if out is None:
        raise ValueError("a data set needs at least one image, got none")
    return _to_tensor(out)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow warns of large images, for which we have our own bound, and of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode_part(part: list[tuple[str, bytes]], mode: str) -> list[Array]:
    return [_decode(encoded, mode, name) for name, encoded in part]


def _decode(encoded: bytes, mode: str, name: str, size: tuple[int, int] | None = None) -> Array:
    """(H, W) or (H, W, 3) uint8."""
    from PIL import Image, UnidentifiedImageError

    array = None
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            width, height = image.size
            if width * height <= _MOST_PIXELS and size in (None, (height, width)):
                array = np.array(_eight_bits(image).convert(mode))
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a whole PNG or JPEG, got {len(encoded)} bytes of something else") from error
    except Exception as error:  # on damaged input Pillow raises what it stumbles over, from OSError to KeyError
        raise ValueError(f"{name} is not a whole PNG or JPEG: {one_line(error)}") from error
    if array is None and size is not None:
        raise ValueError(f"{name} needs to be {size[0]} x {size[1]} pixels, got {height} x {width}; or ask to resize")
    if array is None:
        raise ValueError(f"{name} needs at most {_MOST_PIXELS} pixels, got {width} x {height}")
    return array


def _eight_bits(image: Any) -> Any:
    """Scale 16-bit gray, which Pillow would clip."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.array(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8))


def _first_size(name: str, array: Array, size: int | None) -> tuple[int, ...]:
    if size is not None and array.shape[:2] != (size, size):
        raise ValueError(f"{name} needs {size} x {size} pixels, got {array.shape[0]} x {array.shape[1]}")
    return array.shape[:2]


def _check_sizes(part: list[tuple[str, bytes]], arrays: list[Array], size: tuple[int, ...]) -> None:
    for (name, _), array in zip(part, arrays, strict=True):
        if array.shape[:2] != size:
            raise ValueError(f"{name} needs the size of the images before it, got {array.shape[:2]} after {size}")


def _to_tensor(arrays: Array) -> Tensor:
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W), contiguous."""
    images = torch.from_numpy(arrays)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
