"""Image files as a user has them."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from fastdef.data._decode import Decoder, scale
from fastdef.data._errors import readable
from fastdef.data._read import read_bytes
from fastdef.data._walk import image_files, is_unread, refuse_unread

T = TypeVar("T")
OnError = Callable[[Path, ValueError], object]


def load_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    channels: int,
    size: tuple[int, int],
    resize: bool = False,
    decoder: Decoder | None = None,
    on_error: OnError | None = None,
) -> Iterator[tuple[Path, Tensor]]:
    """Read image files one by one: PNG, JPEG, WebP, BMP and PNM, as a viewer shows them.

    Args:
        paths: a file, a folder, or several; of a folder its images and those of the folders in it, in order of name.
        channels: 1 for gray, 3 for colour; others are converted.
        size: height and width.
        resize: scale images of another size (bilinear, antialiased) where they would be refused.
        decoder: counts what was done to them, and may have a background for what is not opaque.
        on_error: called with the path and the error of what cannot be read, where it would be raised; the next follows.

    Yields:
        The path and the (C, H, W) float32 image in [0, 1].

    Raises:
        ValueError: for a missing path, an empty folder, a broken image, one of another size, or one of a kind that is
            not read; naming it.
    """
    decoder = decoder or Decoder()
    for path in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        for file in _attempt(partial(_files, path), path, on_error) or ():
            load = partial(_load, file, channels=channels, size=size, resize=resize, decoder=decoder)
            if (image := _attempt(load, file, on_error)) is not None:
                yield file, image


def decode_image(
    encoded: bytes,
    *,
    channels: int,
    size: tuple[int, int],
    resize: bool = False,
    name: str = "the image",
    decoder: Decoder | None = None,
) -> Tensor:
    """One PNG, JPEG, WebP, BMP or PNM -> (C, H, W) float32 in [0, 1]; the args are those of :func:`load_images`.

    Raises:
        ValueError: naming ``name``, for a broken image or one of another size.
    """
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ValueError(f"images have 1 or 3 channels, got {channels}")
    expected = None if resize else (size[0], size[1])
    image = (decoder or Decoder()).decode(encoded, mode=modes[channels], name=name, size=expected).float() / 255
    if image.shape[1:] == tuple(size):
        return image
    return scale(image, (size[0], size[1]))


def _load(file: Path, *, channels: int, size: tuple[int, int], resize: bool, decoder: Decoder) -> Tensor:
    with readable(file):
        if is_unread(file):
            raise refuse_unread(file)
        content = read_bytes(file)
        return decode_image(content, channels=channels, size=size, resize=resize, name=str(file), decoder=decoder)


def _files(path: Path) -> list[Path]:
    """The file, or a folder's image files, those that are not read among them."""
    with readable(path):
        files = image_files(path) if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise ValueError(f"{path} needs to be an image file or a folder of them, and there is none")
        return files


def _attempt(action: Callable[[], T], path: Path, on_error: OnError | None) -> T | None:
    """What the action gives, or None once its ValueError is told."""
    try:
        return action()
    except ValueError as error:
        if on_error is None:
            raise
        on_error(path, error)
        return None
