"""Files that are there whole or not at all, JSON among them."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write in place of ``path``; make it ``path`` when the ``with`` ends well.

    The temporary file lies in the same folder, exists and is empty. At the end its bytes are forced to the disk and
    it is renamed, so that at no moment, not even after a crash, ``path`` is anything but the old file or the new
    one. If the body raises, the temporary file is removed and the old one stays. What a killed process left is removed
    when the next file is written to that folder.

    Args:
        path: the file to write; a link is followed.

    Raises:
        ValueError: in one line, if the folder or the disk does not take the file: missing, read-only, full.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".fastdef-{secrets.token_hex(8)}.part")
    held = None
    try:
        # Renaming over /dev/null would replace the device.
        if target.exists() and not target.is_file():
            raise ValueError(f"cannot write {path}: it is there and is not a file")
        _forget_dead(target.parent)
        held = _create(temporary)
        yield temporary
        _force(temporary)
        temporary.replace(target)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, target):
            raise  # the body could not read some other file
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)
    with contextlib.suppress(OSError):  # not every file system can; the file is in place all the same
        _force(target.parent)


def write_json(path: str | os.PathLike[str], value: object, *, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all, and never NaN, which is none.

    Raises:
        ValueError: in one line, for a number that is not finite, or where ``path`` cannot be written.
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: a value is not finite, which JSON cannot hold") from error
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder to write to, and those above it, where they are not there.

    Raises:
        ValueError: in one line, if that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}") from error


def _create(temporary: Path) -> int:
    """A new file, locked until its descriptor is closed: the system closes it too when the process is killed."""
    while True:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # between its making and its lock it was taken for a dead process's


def _forget_dead(folder: Path) -> None:
    """Remove the temporary files of processes that are dead: those that nobody holds a lock on."""
    with contextlib.suppress(OSError):
        for leftover in folder.glob(".fastdef-*.part"):
            descriptor = os.open(leftover, os.O_RDWR | os.O_NONBLOCK)
            try:
                if _lock(descriptor, wait=False):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the file is ours alone now; never where the system or the file system has no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _force(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(path: Path, what: str) -> dict[str, Any]:
    """A JSON object that ``write_json`` wrote.

    Args:
        path: of the file.
        what: it is, for the message: "the settings of a run".

    Raises:
        ValueError: in one line, if it cannot be read or is no object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} does not hold {what}: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold {what}")
    return value
