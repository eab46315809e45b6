"""Data sets as the hub keeps them: parquet files with a column of encoded images and one of labels."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef.data._decode import Decoder
from fastdef.data._errors import one_line
from fastdef.data._facts import Facts
from fastdef.data._names import numbering

_IMAGES = ["image", "img"]  # what a column of images is called where nothing says which it is


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


def read_parquet(files: list[Path], facts: Facts, decoder: Decoder) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(N, C, H, W) uint8 images, (N,) int64 labels, and the names of the classes.

    The files' names of the classes win: the data set's own in another order number its labels anew, others are taken.

    Raises:
        ValueError: for a file that is not whole parquet, lacks the columns, or holds other images or labels than its
            data set; naming it.
    """
    shards = [_shard(file, facts) for file in files]
    count = sum(len(shard.labels) for shard in shards)
    if count == 0:
        raise ValueError(f"{files[0]} needs at least one image, got no rows")
    named = [shard for shard in shards if shard.names]
    classes = _classes(named, facts)
    labels = torch.cat([_labels(shard, classes) for shard in shards])
    images = decoder.decode_all(chain.from_iterable(map(_encoded, shards)), count, mode=facts.mode, size=facts.size)
    return images, labels, classes


@dataclass(frozen=True)
class _Shard:
    """A file's columns, and its own names of the classes, () where it has none but their numbers."""

    file: Path
    column: str
    images: Any
    labels: Any
    names: tuple[str, ...]


def _shard(file: Path, facts: Facts) -> _Shard:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
        features = _features(schema)
        image = image_column(schema, facts.image)
        label = _column(schema.names, facts.label, _of_type(features, "ClassLabel"))
        if image is None or label is None:
            needed = f"the columns {facts.image} and {facts.label}"
            raise ValueError(f"{file} needs {needed}, got {', '.join(schema.names)[:200]}")
        table = parquet.read_table(file, columns=[image, label])
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a whole parquet file: {one_line(error)}") from error
    return _Shard(file, image, table.column(image), table.column(label), _names(file, features.get(label), facts))


def _column(there: list[str], wanted: str, others: list[str]) -> str | None:
    """The column of that name, or the one of the others that is there."""
    if wanted in there:
        return wanted
    found = [name for name in others if name in there]
    return found[0] if len(found) == 1 else None


def _features(schema: Any) -> dict[str, Any]:
    """What the hub's files tell of their columns, by name."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {str(name): told for name, told in features.items() if isinstance(told, dict)}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}


def _of_type(features: dict[str, Any], kind: str) -> list[str]:
    return [name for name, told in features.items() if told.get("_type") == kind]


def _names(file: Path, told: Any, facts: Facts) -> tuple[str, ...]:
    """A file's own names of the classes; numbers in their order say nothing.

    Raises:
        ValueError: if they are not as many as the data set's classes, or two are one.
    """
    names = told.get("names") if isinstance(told, dict) else None
    if not isinstance(names, list):
        return ()
    own = tuple(str(name) for name in names)
    if len(own) != len(facts.classes) or len(set(own)) != len(own):
        got = f"{len(set(own))} of {len(own)}: {', '.join(own)}"
        raise ValueError(f"{file} needs names for {len(facts.classes)} classes, got {got}"[:300])
    return () if own == tuple(map(str, range(len(own)))) else own


def _classes(named: list[_Shard], facts: Facts) -> tuple[str, ...]:
    """The classes of all files.

    Raises:
        ValueError: if two files name other ones.
    """
    for shard in named:
        if set(shard.names) != set(named[0].names):
            other = sorted(set(shard.names) - set(named[0].names))
            raise ValueError(f"{shard.file} needs the classes of {named[0].file}, got {', '.join(other)}"[:300])
    own = named[0].names if named else facts.classes
    number = numbering(facts.classes)
    return facts.classes if {number(name) for name in own} == set(range(len(own))) else own


def image_column(schema: Any, wanted: str = "") -> str | None:
    """The name of the column of images: the one that is wanted, or the only one that is told or named as such."""
    return _column(schema.names, wanted, _of_type(_features(schema), "Image") or _IMAGES)


def binary(file: Path, name: str, column: Any) -> Any:
    """The encoded images of a column, which may be missing.

    Raises:
        ValueError: for a column of anything else.
    """
    from pyarrow import compute, types

    kind = column.type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = compute.struct_field(column, "bytes")  # not the path beside it, which need not even be text
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise _no_images(file, name, kind, column)
    return column


def _no_images(file: Path, name: str, kind: Any, column: Any) -> ValueError:
    return ValueError(f"{file} needs encoded images in {name}, got {kind} with {column.null_count} missing")


def _encoded(shard: _Shard) -> Iterator[tuple[str, bytes]]:
    column = binary(shard.file, shard.column, shard.images)
    if column.null_count:
        raise _no_images(shard.file, shard.column, shard.images.type, column)
    for row, value in enumerate(value for chunk in column.chunks for value in chunk):
        yield f"{shard.file} row {row}", value.as_py()


def _labels(shard: _Shard, classes: tuple[str, ...]) -> Tensor:
    """(N,) int64, numbered as ``classes`` are."""
    from pyarrow import types

    column, count = shard.labels, len(classes)
    if not types.is_integer(column.type) or column.null_count:
        got = f"{column.type} with {column.null_count} missing"
        raise ValueError(f"{shard.file} needs whole numbers as labels, got {got}")
    values = column.to_pylist()
    if values and not 0 <= min(values) <= max(values) < count:
        raise ValueError(f"{shard.file} needs labels from 0 to {count - 1}, got {min(values)} to {max(values)}")
    number = torch.tensor(list(map(numbering(classes), shard.names or classes)))
    return number[torch.tensor(values, dtype=torch.int64)]
