"""What ``model.json`` says of the files beside it: which they are, and what they hash to."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fastdef._validate import check_count, check_positive
from fastdef.io import atomic_write

MANIFEST = "model.json"
MASKED = ".masked.onnx"  # how a file's name ends whose loop steps the whole batch
MOST_STEPS = 100_000  # an image may take, in all outer loops; the paper's ten of 1000 are a tenth of it


def verified(path: Path) -> bytes:
    """The content of a file, after it was seen to be, byte for byte, the one that its folder's ``model.json`` names.

    What parses a file is given these bytes and not the path, so that no other can take its place in between. A file
    that stands alone, without a ``model.json``, has nothing to be held against and passes.

    Raises:
        ValueError: if it is another or cannot be read, or ``model.json`` is damaged or does not name it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    manifest = path.parent / MANIFEST
    if not manifest.is_file():
        return content
    named = read(manifest)["files"].get(path.name)
    if not isinstance(named, dict):
        raise ValueError(f"{manifest} names no {path.name}: it is of another's making")
    if sha256(content) != named.get("sha256"):
        raise ValueError(f"{path} is not the file that {manifest} names: its sha256 is another")
    return content


def sha256(content: bytes) -> str:
    """What ``model.json`` says of a file."""
    return hashlib.sha256(content).hexdigest()


def read_description(text: str, *, source: Path) -> dict[str, Any]:
    """What a file of an export tells of itself inside, of which an engine needs the image and the defense.

    Args:
        text: JSON.
        source: the file.

    Raises:
        ValueError: if it is not what ``fastdef export`` writes.
    """
    try:
        described = json.loads(text)
        shape, defense = described["image"]["shape"], described["defense"]
        channels, height, width = shape
        for name, size in {"channels": channels, "height": height, "width": width}.items():
            check_count(size, name=name, where="an image")
        for name in ("sigma", "delta"):
            check_positive(defense[name], name=name, where="a defense")
            defense[name] = float(defense[name])  # JSON's whole numbers have no bound
        check_steps(defense)
    except (KeyError, TypeError, IndexError, RecursionError, ValueError) as error:
        raise ValueError(f"{source} does not describe a defended classifier: {' '.join(str(error).split())}") from error
    return described


def check_steps(defense: dict[str, Any]) -> None:
    """Refuse a defense whose loop an image could keep busy for hours: a file may come from anyone.

    Raises:
        ValueError: naming what was needed and what came.
    """
    for name in ("max_steps", "outer_loops"):
        check_count(defense[name], name=name, where="a defense")
    if defense["max_steps"] * defense["outer_loops"] > MOST_STEPS:
        raise ValueError(
            f"an export needs max_steps * outer_loops of at most {MOST_STEPS:,}, got {defense['max_steps']} * "
            f"{defense['outer_loops']}"
        )


def read(manifest: Path) -> dict[str, Any]:
    """The content of a ``model.json``.

    Raises:
        ValueError: if it is none, or there is none: it is written last, and an export without it was cut short.
    """
    if not manifest.is_file():
        raise ValueError(f"an export that is whole has a {MANIFEST}, and there is no {manifest}: export it again")
    try:
        content = json.loads(manifest.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{manifest} is not the description of an export: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"{manifest} is not the description of an export: it names no files")
    return content


def read_classes(manifest: Path) -> tuple[str, ...]:
    """The name of each class that an export tells apart.

    Raises:
        ValueError: as ``read`` does, or if there are no such names.
    """
    classes = read(manifest).get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{manifest} is not the description of an export: it names no classes")
    return tuple(classes)


def name_files(manifest: Path, files: dict[str, dict[str, Any]]) -> None:
    """Name more files in a ``model.json``, by their own names; it is written whole or not at all.

    Raises:
        ValueError: if it is damaged, or cannot be written.
    """
    content = read(manifest)
    content["files"] |= files
    with atomic_write(manifest) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
