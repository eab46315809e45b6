"""Files as bytes, within bounds."""

from pathlib import Path

from fastdef.data._errors import one_line

MOST_PIXELS = 64 * 1024 * 1024  # a picture of 8,192 x 8,192; more is a bomb
MOST_BYTES = 8 * MOST_PIXELS  # of which, at 16 bits and four channels, that many are


def read_bytes(file: Path) -> bytes:
    """The content of a file.

    Raises:
        ValueError: if it cannot be read, or is absurdly large; naming it.
    """
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{file} needs at most {MOST_BYTES} bytes, got {size}")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} needs to be a readable file: {error.strerror or one_line(error)}") from error
