"""A folder of images by class: root/train/cat/1.png, root/test/dog/2.jpg; or unsplit, root/cat/1.png."""

from pathlib import Path

import torch
from torch import Tensor

from fastdef.data._decode import decode_all, read_bytes
from fastdef.data._errors import one_line

ENDINGS = (".png", ".jpg", ".jpeg")
WHOLE = "all"  # the split of a folder that has none


def find_tree(root: Path, split: str) -> Path | None:
    """The split's folder, or None where there is none with a folder a class.

    Of :data:`WHOLE` it is ``root``, if that has images in a folder of it and is not split.
    """
    if split != WHOLE:
        return root / split if _folders(root / split) else None
    folders = _folders(root)
    split_already = not {"train", "test"}.isdisjoint(folders)
    return root if not split_already and any(_images(root / name) for name in folders) else None


def read_tree(
    folder: Path, *, mode: str | None = None, known: tuple[str, ...] = ()
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(N, C, H, W) uint8 images, (N,) int64 labels, and the folders' names, sorted, as classes.

    The folders of "train" beside a ``folder`` "test" number the classes, so that a label means the same in each split.

    Args:
        folder: of the split.
        mode: "L" or "RGB"; by default gray where all images are gray, else RGB.
        known: the classes, where the folders bear no other names; a label then means what it means in other formats.

    Raises:
        ValueError: for a class without images, a broken image, or images of several sizes.
    """
    classes = tuple((folder.name == "test" and _folders(folder.parent / "train")) or _folders(folder))
    classes = known if set(classes) <= set(known) else classes
    files: list[Path] = []
    labels: list[int] = []
    for name in _folders(folder):
        if name not in classes:
            got = f"{name}, which {folder.parent / 'train'} has not"
            raise ValueError(f"{folder} needs a class of the training split, got {got}")
        own = image_files(folder / name)
        files += own
        labels += [classes.index(name)] * len(own)
    mode = mode or ("L" if all(_is_gray(file) for file in files) else "RGB")
    images = decode_all(((str(file), read_bytes(file)) for file in files), len(files), mode=mode)
    return images, torch.tensor(labels), classes


def image_files(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, in order of name.

    Raises:
        ValueError: if there are none.
    """
    images = _images(folder)
    if not images:
        raise ValueError(f"{folder} needs at least one {' or '.join(ENDINGS)} file, got none")
    return images


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if _is_image(file))


def _is_image(file: Path) -> bool:
    """By its name; and a pipe or a device would be waited for without end."""
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, numbers as such; those that begin with a dot are of some tool."""
    if not folder.is_dir():
        return []
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def _is_gray(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            return image.mode in ("L", "LA", "1") or image.mode.startswith("I")
    except Exception as error:  # as in decoding, Pillow raises what it stumbles over
        raise ValueError(f"{file} is not a whole PNG or JPEG: {one_line(error)}") from error
