"""Data sets as the hub keeps them: parquet files with a column of encoded images and one of labels."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef.data._decode import decode_all
from fastdef.data._errors import one_line
from fastdef.data._facts import Facts


def find_parquet(root: Path, facts: Facts, split: str) -> list[Path]:
    """The split's files, in order: in ``root`` itself, in the folder the hub has them in, or in one other folder.

    Raises:
        ValueError: if several folders hold such files, or some of the split's files are missing.
    """
    pattern = f"{facts.files[split]}-*.parquet"
    files = (
        sorted(root.glob(pattern)) or sorted((root / facts.folder).glob(pattern)) or sorted(root.glob(f"*/{pattern}"))
    )
    folders = sorted({file.parent.name for file in files})
    if len(folders) > 1:
        raise ValueError(f"{root} needs one folder with {pattern}, got {len(folders)}: {', '.join(folders)[:200]}")
    numbers = [re.fullmatch(r".*-(\d+)-of-(\d+)(-[0-9a-f]+)?", file.stem) for file in files]
    if all(numbers):
        got = sorted((int(number[1]), int(number[2])) for number in numbers if number)
        if got != [(index, got[0][1]) for index in range(got[0][1] if got else 0)]:
            raise ValueError(f"{files[0].parent} needs all {got[0][1]} files of {pattern}, got {len(files)}")
    return files


def read_parquet(files: list[Path], facts: Facts) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(N, C, H, W) uint8 images, (N,) int64 labels, and the names of the classes.

    Raises:
        ValueError: for a file that is not whole parquet, lacks the columns, or holds other images or labels than its
            data set; naming it.
    """
    tables = [(file, _table(file, facts)) for file in files]
    count = sum(len(table) for _, table in tables)
    if count == 0:
        raise ValueError(f"{files[0]} needs at least one image, got no rows")
    names = (_names(tables[0][1], facts.label) or ()) if facts.names_in_files else ()
    classes = names if len(names) == len(facts.classes) else facts.classes
    labels = torch.cat([_labels(file, table.column(facts.label), len(classes)) for file, table in tables])
    images = decode_all(_encoded(tables, facts), count, mode=facts.mode, size=facts.size)
    return images, labels, classes


def _table(file: Path, facts: Facts) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
        missing = [column for column in (facts.image, facts.label) if column not in names]
        if missing:
            raise ValueError(f"{file} needs the columns {facts.image} and {facts.label}, got {', '.join(names)[:200]}")
        return parquet.read_table(file, columns=[facts.image, facts.label])
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a whole parquet file: {one_line(error)}") from error


def _encoded(tables: list[tuple[Path, Any]], facts: Facts) -> Iterator[tuple[str, bytes]]:
    from pyarrow import compute, types

    for file, table in tables:
        column = table.column(facts.image)
        kind = column.type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            column = compute.struct_field(column, "bytes")  # not the path beside it, which need not even be text
        if not (types.is_binary(column.type) or types.is_large_binary(column.type)) or column.null_count:
            got = f"{kind} with {column.null_count} missing"
            raise ValueError(f"{file} needs encoded images in {facts.image}, got {got}")
        for row, value in enumerate(value for chunk in column.chunks for value in chunk):
            yield f"{file} row {row}", value.as_py()


def _labels(file: Path, column: Any, classes: int) -> Tensor:
    from pyarrow import types

    if not types.is_integer(column.type) or column.null_count:
        raise ValueError(f"{file} needs whole numbers as labels, got {column.type} with {column.null_count} missing")
    values = column.to_pylist()
    if values and not 0 <= min(values) <= max(values) < classes:
        raise ValueError(f"{file} needs labels from 0 to {classes - 1}, got {min(values)} to {max(values)}")
    return torch.tensor(values, dtype=torch.int64)


def _names(table: Any, label: str) -> tuple[str, ...] | None:
    """The classes' names as the hub's files carry them in their schema, or None."""
    try:
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None
