"""One line for what other packages say in many."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def one_line(error: BaseException) -> str:
    """The message of ``error`` without its line breaks, cut where it is long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system refuses within (a folder that may not be listed, a name too long) is a ValueError on ``path``.

    A ValueError within stays one, in one line: a file's name may have others.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise ValueError(_printable(f"{str(path)[:200]} needs to be there and readable: {reason}")) from error
    except ValueError as error:
        line = _printable(str(error))
        if line == str(error):
            raise
        raise ValueError(line) from error


def _printable(text: str) -> str:
    """The text with escapes for line breaks, controls and halves of characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
