"""What ``model.json`` says of the files beside it: which they are, and what they hash to."""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "model.json"


def verify(path: Path) -> None:
    """Refuse a file that is not, byte for byte, the one that its folder's ``model.json`` names.

    A file that stands alone, without a ``model.json``, has nothing to be held against and passes.

    Raises:
        ValueError: if it is another, or ``model.json`` is damaged or does not name it.
    """
    manifest = path.parent / MANIFEST
    if not manifest.is_file():
        return
    named = read(manifest)["files"].get(path.name)
    if not isinstance(named, dict):
        raise ValueError(f"{manifest} names no {path.name}: it is of another's making")
    if hashlib.sha256(path.read_bytes()).hexdigest() != named.get("sha256"):
        raise ValueError(f"{path} is not the file that {manifest} names: its sha256 is another")


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
