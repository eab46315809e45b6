"""Encoded images where they lie, numbered: files, folders of them, and parquet files, more than a memory holds."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from fastdef.data._errors import one_line, readable
from fastdef.data._parquet import binary, image_column
from fastdef.data._read import read_bytes
from fastdef.data._walk import image_files, is_unread, refuse_unread

Load = Callable[[], bytes]
_PARQUET = ".parquet"


class EncodedImages:
    """The images of some paths, in an order that does not change: that of the paths, and in a folder that of names.

    Of a folder with parquet files in it, those are read and nothing else. Of parquet files the footers alone are read
    until an image is asked for.

    Args:
        paths: image files, parquet files with a column ``image`` or ``img``, and folders of either.

    Raises:
        ValueError: for a path that is neither, or a file that is no whole parquet; naming it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [file.absolute() for path in paths for file in _files(path)]
        counts = [_rows(file) if file.suffix == _PARQUET else 1 for file in self._files]
        self._starts = [0, *accumulate(counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def digest(self) -> str:
        """A short text that other files, another order or other numbers of rows do not have."""
        digest = hashlib.sha256()
        for file, end in zip(self._files, self._starts[1:], strict=True):
            digest.update(f"{file}\0{end}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def read(self, numbers: range) -> Iterator[tuple[str, Load]]:
        """Name of each image and what loads its bytes; a ValueError of the latter names the image.

        Args:
            numbers: of the images, one after the other.
        """
        at = bisect_right(self._starts, numbers.start) - 1
        while numbers.start < numbers.stop:
            start, end = self._starts[at], min(self._starts[at + 1], numbers.stop)
            yield from _images(self._files[at], range(numbers.start - start, end - start))
            numbers, at = range(end, numbers.stop), at + 1


def _files(path: Path) -> list[Path]:
    with readable(path):
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise ValueError(f"{path} needs to be an image file, a parquet file or a folder of them, and there is none")
        return sorted(path.rglob(f"*{_PARQUET}")) or image_files(path)


def _rows(file: Path) -> int:
    return int(_opened(file).metadata.num_rows)


def _opened(file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a whole parquet file: {one_line(error)}") from error


def _images(file: Path, rows: range) -> Iterator[tuple[str, Load]]:
    if file.suffix != _PARQUET:
        yield str(file), partial(_file, file)
        return
    for row, value in _values(file, rows):
        name = f"{file} row {row}"
        yield name, partial(_there, name, value)


def _values(file: Path, rows: range) -> Iterator[tuple[int, bytes | None]]:
    """The rows, a row group at a time."""
    opened = _opened(file)
    name = image_column(opened.schema_arrow)
    if name is None:
        raise ValueError(f"{file} needs a column image or img, got {', '.join(opened.schema_arrow.names)[:200]}")
    first = 0
    for group in range(opened.num_row_groups):
        last = first + opened.metadata.row_group(group).num_rows
        wanted = range(max(first, rows.start), min(last, rows.stop))
        if wanted:
            column = binary(file, name, opened.read_row_group(group, columns=[name]).column(name))
            for row, value in zip(wanted, column.slice(wanted.start - first, len(wanted)), strict=True):
                yield row, value.as_py()
        first = last


def _file(file: Path) -> bytes:
    with readable(file):
        if is_unread(file):
            raise refuse_unread(file)
        return read_bytes(file)


def _there(name: str, value: bytes | None) -> bytes:
    if value is None:
        raise ValueError(f"{name} needs an image, and there is none")
    return value
