"""Image files as a user has them."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from fastdef.data._decode import decode, read_bytes
from fastdef.data._errors import readable
from fastdef.data._tree import image_files


def load_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    channels: int,
    size: tuple[int, int],
    resize: bool = False,
) -> Iterator[tuple[Path, Tensor]]:
    """Read PNG and JPEG files one by one.

    Args:
        paths: a file, a folder, or several; of a folder its .png, .jpg and .jpeg files in order of name.
        channels: 1 for gray, 3 for colour; others are converted.
        size: height and width.
        resize: scale images of another size (bilinear, antialiased) where they would be refused.

    Yields:
        The path and the (C, H, W) float32 image in [0, 1].

    Raises:
        ValueError: for a missing path, an empty folder, a broken image or one of another size; naming it.
    """
    for path in _files([paths] if isinstance(paths, (str, os.PathLike)) else paths):
        yield path, decode_image(read_bytes(path), channels=channels, size=size, resize=resize, name=str(path))


def decode_image(
    encoded: bytes, *, channels: int, size: tuple[int, int], resize: bool = False, name: str = "the image"
) -> Tensor:
    """One PNG or JPEG -> (C, H, W) float32 in [0, 1]; the args are those of :func:`load_images`.

    Raises:
        ValueError: naming ``name``, for a broken image or one of another size.
    """
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ValueError(f"images have 1 or 3 channels, got {channels}")
    expected = None if resize else (size[0], size[1])
    image = decode(encoded, mode=modes[channels], name=name, size=expected).float() / 255
    if image.shape[1:] == tuple(size):
        return image
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    for path in map(Path, paths):
        with readable(path):
            images = image_files(path) if path.is_dir() else [path] if path.is_file() else []
        if not images:
            raise ValueError(f"{path} needs to be an image file or a folder of them, and there is none")
        yield from images
