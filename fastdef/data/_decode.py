"""Encoded images to uint8 tensors."""

import io
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

_MOST_PIXELS = 64 * 1024 * 1024  # a picture of 8,192 x 8,192; more is a bomb


def decode(encoded: bytes, *, mode: str, name: str) -> Tensor:
    """One PNG or JPEG -> (C, H, W) uint8.

    Raises:
        ValueError: naming ``name``, if it is not a whole image of a sane size.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have our own bound
            with Image.open(io.BytesIO(encoded)) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(f"{name} needs at most {_MOST_PIXELS} pixels, got {image.width} x {image.height}")
                array = np.array(image.convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError(f"{name} is not a whole PNG or JPEG: {' '.join(str(error).split())[:200]}") from error
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1).contiguous()


def decode_all(encoded: Iterable[tuple[str, bytes]], count: int, *, mode: str) -> Tensor:
    """``count`` (name, bytes) pairs -> (N, C, H, W) uint8, on a few threads; Pillow lets go of the interpreter.

    Raises:
        ValueError: for a broken image, or one of another size than the first; naming it.
    """
    source = iter(encoded)
    out: Tensor | None = None
    done = 0
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(source, 4096)):
            images = pool.map(lambda item: decode(item[1], mode=mode, name=item[0]), chunk)
            for (name, _), image in zip(chunk, images, strict=True):
                if out is None:
                    out = torch.empty((count, *image.shape), dtype=torch.uint8)
                if image.shape != out.shape[1:]:
                    sizes = f"{tuple(image.shape[1:])} after {tuple(out.shape[2:])}"
                    raise ValueError(f"{name} needs the size of the images before it, got {sizes}")
                out[done] = image
                done += 1
    if out is None:
        raise ValueError("a data set needs at least one image, got none")
    return out
