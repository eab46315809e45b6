"""Data sets as the hub keeps them: parquet files with a column of encoded images and one of labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef.data._decode import decode_all
from fastdef.data._facts import Facts


def find_parquet(root: Path, facts: Facts, split: str) -> list[Path]:
    """The split's files, in order: in ``root`` itself, or in one folder below."""
    pattern = f"{facts.files[split]}-*.parquet"
    return sorted(root.glob(pattern)) or sorted(root.glob(f"*/{pattern}"))


def read_parquet(files: list[Path], facts: Facts) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) uint8 images and (N,) int64 labels.

    Raises:
        ValueError: for a file that is not whole parquet, or lacks the columns; naming it.
    """
    tables = [(file, _table(file, facts)) for file in files]
    images = decode_all(_encoded(tables, facts), sum(len(table) for _, table in tables), mode=facts.mode)
    labels = [_labels(file, table.column(facts.label)) for file, table in tables]
    return images, torch.cat(labels)


def _table(file: Path, facts: Facts) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
        missing = [column for column in (facts.image, facts.label) if column not in names]
        if missing:
            raise ValueError(f"{file} needs the columns {facts.image} and {facts.label}, got {', '.join(names)}")
        return parquet.read_table(file, columns=[facts.image, facts.label])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a whole parquet file: {' '.join(str(error).split())[:200]}") from error


def _encoded(tables: list[tuple[Path, Any]], facts: Facts) -> Iterator[tuple[str, bytes]]:
    for file, table in tables:
        row = 0
        for chunk in table.column(facts.image).chunks:
            for value in chunk:
                item = value.as_py()
                encoded = item.get("bytes") if isinstance(item, dict) else item
                if not isinstance(encoded, bytes):
                    raise ValueError(
                        f"{file} row {row} needs encoded bytes in {facts.image}, got {type(encoded).__name__}"
                    )
                yield f"{file} row {row}", encoded
                row += 1


def _labels(file: Path, column: Any) -> Tensor:
    values = column.to_pylist()
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"{file} needs whole numbers as labels, got {column.type}")
    return torch.tensor(values, dtype=torch.int64)
