"""One part: its images read, decoded and defended, and its rows written.

An image's noise hangs on its number among all images, so its row does not depend on the part it is in.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef.checkpoint import image_shape, load
from fastdef.data import Decoder, EncodedImages, decode_image
from fastdef.defense import ActiveDefense, Result
from fastdef.io import atomic_write

Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How an image becomes a row; can be sent to another process.

    Attributes:
        model: a file with an active defense.
        images: all of them.
        seed: of the noise.
        max_steps: that an image may take; the file's if not given.
        deterministic: rows are bitwise the same, whatever the parts, and wherever they are made by the same program on
            the same kind of device.
        dtype: of the loop's convolutions.
        compile: torch.compile the step, and the classifier where it is in 16 bit.
        size: height and width of the images, where the file does not say.
        resize: scale images of another size.
        background: colour to put under what is not opaque.
        device: where the defense runs.
        source: of the network, as :func:`fastdef.load` takes it.
    """

    model: Path
    images: EncodedImages
    seed: int
    max_steps: int | None = None
    deterministic: bool = False
    dtype: torch.dtype = torch.float32
    compile: bool = False
    size: int | None = None
    resize: bool = False
    background: str | None = None
    device: str = "cpu"
    source: str | None = None


class PartMaker:
    """Makes parts, one after another, with the model loaded once.

    Args:
        recipe: of the rows.

    Raises:
        ValueError: for a model file, a size or a background that do not fit.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._decoder = Decoder(recipe.background)
        checkpoint = load(recipe.model, device=recipe.device, source=recipe.source)
        self._classes = checkpoint.classes
        self._channels, *self._plane = image_shape(checkpoint, recipe.size)
        steps = {} if recipe.max_steps is None else {"max_steps": recipe.max_steps}
        self._defense = ActiveDefense.from_checkpoint(
            checkpoint,
            seed=recipe.seed,
            dtype=recipe.dtype,
            compile=recipe.compile,
            deterministic=recipe.deterministic,
            **steps,
        )

    def write(self, numbers: range, path: Path) -> None:
        """The rows of those images, as a parquet file.

        Raises:
            ValueError: where it cannot be written.
        """
        from pyarrow import Table, parquet

        table = Table.from_pylist(sorted(self._rows(numbers), key=lambda row: row["id"]), schema=_schema())
        with atomic_write(path) as temporary:
            parquet.write_table(table, temporary)

    def _rows(self, numbers: range) -> Iterator[Row]:
        """Of every image one, in no order."""
        refused: list[Row] = []
        waiting: deque[tuple[int, str]] = deque()
        ids: deque[int] = deque()

        def arriving() -> Iterator[Tensor]:
            for number, (name, encoded) in zip(numbers, self._recipe.images.read(numbers), strict=True):
                try:
                    image = self._decode(encoded(), name)
                except ValueError as error:
                    refused.append({"id": number, "file": name, "error": " ".join(str(error).split())})
                    continue
                waiting.append((number, name))
                ids.append(number)  # is taken when the image is
                yield image

        for result in self._defense.stream(arriving(), ids=iter(ids.popleft, None)):
            yield self._row(*waiting.popleft(), result)
        yield from refused

    def _decode(self, encoded: bytes, name: str) -> Tensor:
        size = self._plane[0], self._plane[1]
        return decode_image(
            encoded, channels=self._channels, size=size, resize=self._recipe.resize, name=name, decoder=self._decoder
        )

    def _row(self, number: int, name: str, result: Result) -> Row:
        probability, label = result.logits.exp().max(0)
        answered = math.isfinite(probability)  # not where the classifier gave NaN
        return {
            "id": number,
            "file": name,
            "label": int(label) if answered else None,
            "class": self._classes[int(label)] if answered else None,
            "probability": float(probability) if answered else None,
            "steps": result.steps,
            "converged": result.converged,
            "error": None if answered else "the classifier gave probabilities that are not finite",
        }


def _schema() -> Any:
    import pyarrow as pa

    columns = {"id": pa.int64(), "file": pa.string(), "label": pa.int32(), "class": pa.string()}
    columns |= {"probability": pa.float32(), "steps": pa.int32(), "converged": pa.bool_(), "error": pa.string()}
    return pa.schema(columns)
