"""A folder of images by class, as torchvision's ImageFolder reads it: root/train/cat/1.png, root/test/dog/2.jpg.

Or unsplit, root/cat/1.png. What lies deeper in a class's folder is of the class.
"""

from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastdef.data._decode import Decoder, is_gray
from fastdef.data._names import numbering
from fastdef.data._read import read_bytes
from fastdef.data._walk import files_below, image_files, is_image, is_unread

WHOLE = "all"  # the split of a folder that has none
ClassOrder = Literal["text", "number"]
_NAMES = {"train": ("train",), "test": ("test",), "validation": ("val", "validation", "valid")}
_SPLITS = {name for names in _NAMES.values() for name in names}


def find_tree(root: Path, split: str) -> Path | None:
    """The split's folder, or None where there is none with a folder a class.

    Of :data:`WHOLE` it is ``root``, if that has images in a folder of it and is not split.

    Raises:
        ValueError: if it is there under two names.
    """
    if split != WHOLE:
        found = [root / name for name in _NAMES[split] if _folders(root / name)]
        if len(found) > 1:
            raise ValueError(f"{root} needs one folder for {split}, got {' and '.join(path.name for path in found)}")
        return found[0] if found else None
    folders = _folders(root)
    has_images = (next(files_below(root / name), None) is not None for name in folders)
    return root if _SPLITS.isdisjoint(folders) and any(has_images) else None


def read_tree(
    folder: Path,
    *,
    decoder: Decoder,
    mode: str | None = None,
    known: tuple[str, ...] = (),
    class_order: ClassOrder = "text",
    size: int | None = None,
) -> tuple[Tensor, Tensor, tuple[str, ...], tuple[str, ...]]:
    """(N, C, H, W) uint8 images, (N,) int64 labels, the folders' names, in order, as classes, and what to tell of them.

    The folders of "train" beside a ``folder`` number the classes, so that a label means the same in each split.

    Args:
        folder: of the split.
        decoder: of the images.
        mode: "L" or "RGB"; by default gray where all images are gray, else RGB.
        known: the classes, where the folders bear no other names; a label then means what it means in other formats.
        class_order: of the folders, where they are not ``known``: "text", as ImageFolder has them ("10" before "2"), or
            "number", where all names are numbers.
        size: height and width that images are scaled to; without it all have one size.

    Raises:
        ValueError: for a class without images, a broken image, or images of several sizes.
    """
    classes = _classes(folder, known, class_order)
    number = numbering(classes)
    files: list[Path] = []
    labels: list[int] = []
    for name in _folders(folder):
        label = number(name)
        if label is None:
            got = f"{name}, which {folder.parent / 'train'} has not"
            raise ValueError(f"{folder} needs a class of the training split, got {got}")
        own = [file for file in image_files(folder / name) if not is_unread(file)]
        if not own:
            raise ValueError(f"{folder / name} needs at least one image of a kind that is read, got none")
        files += own
        labels += [label] * len(own)
    mode = mode or ("L" if all(is_gray(read_bytes(file), name=str(file)) for file in files) else "RGB")
    images = decoder.decode_all(((str(file), read_bytes(file)) for file in files), len(files), mode=mode, scale_to=size)
    return images, torch.tensor(labels), classes, (*_unread(folder), *_order(classes, known, class_order))


def _classes(folder: Path, known: tuple[str, ...], class_order: ClassOrder) -> tuple[str, ...]:
    split = folder.name in _SPLITS - {"train"}
    names = (split and _folders(folder.parent / "train")) or _folders(folder)
    numbers = list(map(numbering(known), names))
    if None not in numbers and len(set(numbers)) == len(names):
        return known
    if class_order == "number":
        if not all(name.isdecimal() for name in names):
            other = next(name for name in names if not name.isdecimal())
            raise ValueError(f"{folder} needs folders that are numbers for the class order number, got {other}")
        return tuple(sorted(names, key=int))
    return tuple(names)


def _order(classes: tuple[str, ...], known: tuple[str, ...], class_order: ClassOrder) -> list[str]:
    if class_order == "number" or classes == known or not all(name.isdecimal() for name in classes):
        return []
    if list(classes) == sorted(classes, key=int):
        return []
    return ["numbered folders are in the order of text, 10 before 2, as torchvision has them; see the class order"]


def _unread(folder: Path) -> list[str]:
    """A line on the image files that are no part of the set: of other kinds, or in no folder of a class."""
    below = (file for name in _folders(folder) for file in files_below(folder / name) if is_unread(file))
    beside = sorted(file for file in folder.iterdir() if is_image(file))
    files = [str(file.relative_to(folder)) for file in chain(beside, below)]
    if not files:
        return []
    more = "" if len(files) <= 10 else ", ..."
    return [f"{len(files)} image files of {folder} were not read: {', '.join(files[:10])}{more}"]


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder; those that begin with a dot are of some tool."""
    if not folder.is_dir():
        return []
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
