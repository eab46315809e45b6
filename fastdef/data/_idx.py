"""Fashion-MNIST as it was published: IDX files, gzipped or not."""

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdef.data._errors import one_line
from fastdef.data._facts import Facts
from fastdef.data._read import MOST_BYTES, read_bytes

_PREFIX = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = 0x803, 0x801  # unsigned bytes, of three dimensions and of one


def find_idx(root: Path, split: str) -> tuple[Path, Path] | None:
    """The split's images and labels, or None where there are none.

    Raises:
        ValueError: if only one of the two is there.
    """
    names = [f"{_PREFIX[split]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    pair = [next((file for file in (root / f"{name}.gz", root / name) if file.is_file()), None) for name in names]
    if pair[0] and pair[1]:
        return pair[0], pair[1]
    if pair[0] or pair[1]:
        raise ValueError(f"{root} needs both {names[0]} and {names[1]}, got only {pair[0] or pair[1]}")
    return None


def read_idx(files: tuple[Path, Path], facts: Facts) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) uint8 images and (N,) int64 labels.

    Raises:
        ValueError: for a file that is not whole IDX of that kind, or holds other images or labels than its data set;
            naming it.
    """
    images, labels = _read(files[0], _IMAGES), _read(files[1], _LABELS)
    if len(images) == 0:
        raise ValueError(f"{files[0]} needs at least one image, got none")
    if images.shape[1:] != (facts.size, facts.size):
        got = f"{images.shape[1]} x {images.shape[2]}"
        raise ValueError(f"{files[0]} needs images of {facts.size} x {facts.size} pixels, got {got}")
    if len(images) != len(labels):
        raise ValueError(f"{files[1]} needs {len(images)} labels, one for each image, got {len(labels)}")
    if int(labels.max()) >= len(facts.classes):
        raise ValueError(f"{files[1]} needs labels from 0 to {len(facts.classes) - 1}, got {int(labels.max())}")
    return images[:, None], labels.long()


def write_idx(folder: str | os.PathLike[str], split: str, images: Tensor, labels: Tensor) -> None:
    """Write a split as gzipped IDX files, as Fashion-MNIST was published; the same content gives the same bytes.

    Args:
        folder: where; made if it is not there.
        split: "train" or "test".
        images: (N, 1, H, W) uint8.
        labels: (N,) whole numbers from 0 to 255.

    Raises:
        ValueError: for another split, shape or type.
    """
    if split not in _PREFIX:
        raise ValueError(f"write_idx needs the split train or test, got {split!r}")
    if images.ndim != 4 or images.shape[1] != 1 or images.dtype != torch.uint8:
        raise ValueError(f"write_idx needs (N, 1, H, W) uint8 images, got {tuple(images.shape)} {images.dtype}")
    if labels.shape != images.shape[:1] or not bool(((labels >= 0) & (labels <= 255)).all()):
        raise ValueError(f"write_idx needs {len(images)} labels from 0 to 255, got shape {tuple(labels.shape)}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for kind, magic, values in (("images-idx3", _IMAGES, images[:, 0]), ("labels-idx1", _LABELS, labels)):
        header = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
        body = values.to("cpu", torch.uint8).contiguous().numpy().tobytes()
        (Path(folder) / f"{_PREFIX[split]}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + body, mtime=0))


def _read(file: Path, magic: int) -> Tensor:
    content = _unpack(file) if file.suffix == ".gz" else read_bytes(file)
    rank = magic & 0xFF
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(f"{file} needs an IDX header, got {len(content)} bytes")
    got, *shape = struct.unpack(f">{1 + rank}I", content[:start])
    if got != magic:
        raise ValueError(f"{file} needs the IDX magic number {magic:#x}, got {got:#x}")
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{file} needs {math.prod(shape)} values after its header, got {len(content) - start}")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8)[start:].reshape(shape).copy())


def _unpack(file: Path) -> bytes:
    """The content of a gzip file, cut off where it is a bomb: its header then asks for another length."""
    packed = read_bytes(file)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            return stream.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file: {one_line(error)}") from error
