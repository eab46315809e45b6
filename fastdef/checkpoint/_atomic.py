"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write in place of ``path``; make it ``path`` when the ``with`` ends well.

    The temporary file lies in the same folder, exists and is empty. At the end its bytes are forced to the disk and
    it is renamed, so that at no moment, not even after a crash, ``path`` is anything but the old file or the new
    one. If the body raises, the temporary file is removed and the old one stays.

    Args:
        path: the file to write; a link is followed.

    Raises:
        ValueError: in one line, if the folder or the disk does not take the file: missing, read-only, full.
    """
    target = Path(os.path.realpath(path))
    aside = target.with_name(f".fastdef-{secrets.token_hex(8)}.part")
    try:
        # Renaming over /dev/null would replace the device.
        if target.exists() and not target.is_file():
            raise ValueError(f"cannot write {path}: it is there and is not a file")
        os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield aside
        _force(aside)
        aside.replace(target)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (aside, target):
            raise  # the body could not read some other file
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every file system can; the file is in place all the same
        _force(target.parent)


def _force(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
