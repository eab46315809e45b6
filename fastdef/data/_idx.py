"""Fashion-MNIST as it was published: IDX files, gzipped or not."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_PREFIX = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = 0x803, 0x801  # unsigned bytes, of three dimensions and of one


def find_idx(root: Path, split: str) -> tuple[Path, Path] | None:
    """The split's images and labels, or None where there are none."""
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{_PREFIX[split]}-{kind}-ubyte"
        files = [file for file in (root / f"{name}.gz", root / name) if file.is_file()]
        if not files:
            return None
        found.append(files[0])
    return found[0], found[1]


def read_idx(files: tuple[Path, Path]) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) uint8 images and (N,) int64 labels.

    Raises:
        ValueError: for a file that is not whole IDX of that kind; naming it.
    """
    images, labels = _read(files[0], _IMAGES), _read(files[1], _LABELS)
    if len(images) != len(labels):
        raise ValueError(f"{files[1]} needs {len(images)} labels, one for each image, got {len(labels)}")
    return images[:, None], labels.long()


def write_idx(root: Path, split: str, images: Tensor, labels: Tensor) -> None:
    """Write (N, 1, H, W) uint8 images and (N,) labels as gzipped IDX; the same content gives the same bytes."""
    for kind, magic, values in (("images-idx3", _IMAGES, images[:, 0]), ("labels-idx1", _LABELS, labels)):
        header = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
        body = values.to(torch.uint8).contiguous().numpy().tobytes()
        (root / f"{_PREFIX[split]}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + body, mtime=0))


def _read(file: Path, magic: int) -> Tensor:
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file: {error}") from error
    rank = magic & 0xFF
    if len(content) < 4 + 4 * rank:
        raise ValueError(f"{file} needs an IDX header, got {len(content)} bytes")
    got, *shape = struct.unpack(f">{1 + rank}I", content[: 4 + 4 * rank])
    if got != magic:
        raise ValueError(f"{file} needs the IDX magic number {magic:#x}, got {got:#x}")
    size = int(np.prod(shape, dtype=object))
    if len(content) != 4 + 4 * rank + size:
        raise ValueError(f"{file} needs {size} values after its header, got {len(content) - 4 - 4 * rank}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * rank).view(*shape)
