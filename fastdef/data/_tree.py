"""A folder of images by class: root/train/cat/1.png, root/test/dog/2.jpg."""

from pathlib import Path

import torch
from torch import Tensor

from fastdef.data._decode import decode_all

ENDINGS = (".png", ".jpg", ".jpeg")


def find_tree(root: Path, split: str) -> Path | None:
    """The split's folder, or None where there is none with a folder a class."""
    folder = root / split
    return folder if folder.is_dir() and any(child.is_dir() for child in folder.iterdir()) else None


def read_tree(folder: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(N, C, H, W) uint8 images, (N,) int64 labels, and the folders' names, sorted, as classes.

    Images are gray where the first one is, else RGB.

    Raises:
        ValueError: for a class without images, a broken image, or images of several sizes.
    """
    from PIL import Image

    classes = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir()))
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(file for file in (folder / name).iterdir() if file.suffix.lower() in ENDINGS)
        if not found:
            raise ValueError(f"{folder / name} needs at least one {' or '.join(ENDINGS)} file, got none")
        files += found
        labels += [label] * len(found)
    try:
        with Image.open(files[0]) as first:
            mode = "L" if first.mode in ("L", "1", "I", "I;16") else "RGB"
    except OSError as error:
        raise ValueError(f"{files[0]} is not a whole PNG or JPEG: {error}") from error
    images = decode_all(((str(file), file.read_bytes()) for file in files), len(files), mode=mode)
    return images, torch.tensor(labels), classes
