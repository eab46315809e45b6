"""The image files of a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm")
# libtiff and the like take too much that no two viewers show alike; a person's folder has them all the same.
_UNREAD = (".gif", ".tif", ".tiff", ".apng", ".mpo", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".ico", ".tga")


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and of the folders in it, in order of name; those that are not read among them.

    Raises:
        ValueError: if there are none.
    """
    images = list(files_below(folder))
    if not images:
        raise ValueError(f"{folder} needs at least one image file ({', '.join(ENDINGS)}), got none")
    return images


def files_below(folder: Path) -> Iterator[Path]:
    """The same, one by one, and none where there are none.

    Links are followed, unless they lead back up.

    Raises:
        OSError: for a folder that cannot be listed.
    """
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _leads_up(place, name))
        yield from (file for file in (Path(place) / name for name in sorted(names)) if is_image(file))


def is_image(file: Path) -> bool:
    """By its name; and a pipe or a device would be waited for without end."""
    return file.suffix.lower() in ENDINGS + _UNREAD and not file.name.startswith(".") and file.is_file()


def is_unread(file: Path) -> bool:
    """Whether it is an image of a kind that is not read."""
    return file.suffix.lower() in _UNREAD


def refuse_unread(file: Path) -> ValueError:
    """What to raise for it."""
    return ValueError(f"{file} needs to be of a kind that is read ({', '.join(ENDINGS)}); convert it to PNG")


def _leads_up(place: str, name: str) -> bool:
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(Path(place) / name))


def _raise(error: OSError) -> None:
    raise error
