"""``fastdef defend``: image files in, one JSON line an image out."""

import json
import math
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from fastdef.checkpoint import image_shape, load
from fastdef.cli._data import Background, tell_notes
from fastdef.cli._shared import Device, Size, Source, check_device
from fastdef.data import Decoder, load_images
from fastdef.defense import ActiveDefense, Result


def defend(
    model: Annotated[Path, typer.Argument(help="a model file with an active defense")],
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, WebP, BMP or PNM files, or folders of them")],
    size: Size = None,
    resize: Annotated[bool, typer.Option("--resize", help="scale images of another size")] = False,
    background: Background = None,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first file that cannot be answered")] = False,
    seed: Annotated[int | None, typer.Option(help="of the noise; drawn from the system if not given")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps an image may take")] = None,
    deadline: Annotated[float | None, typer.Option(min=0, help="seconds an image may take")] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the step; pays from some hundred images on")] = False,
    device: Device = "cpu",
    source: Source = None,
) -> None:
    """Classify image files behind the model's defense. Prints class, probability, steps and whether it converged.

    Class and probability are null where there is no answer: the deadline passed first, or the classifier gave NaN. A
    file that is no image, or not for sure what a viewer shows, has a line with its error; the others are answered, and
    the status is 1.
    """
    decoder = Decoder(background)
    checkpoint = load(model, device=check_device(device), source=source)
    options = {} if max_steps is None else {"max_steps": max_steps}
    defense = ActiveDefense.from_checkpoint(checkpoint, seed=seed, compile=compile, **options)
    channels, *plane = image_shape(checkpoint, size)
    lines = _Lines(checkpoint.classes)

    files = load_images(
        images,
        channels=channels,
        size=(plane[0], plane[1]),
        resize=resize,
        decoder=decoder,
        on_error=None if strict else lines.refuse,
    )

    def arriving() -> Iterator[Tensor]:
        for path, image in files:
            lines.expect(path)
            yield image

    for result in defense.stream(arriving(), deadline=deadline):
        lines.answer(result)
    lines.end()
    tell_notes(decoder.notes)
    if lines.refused:
        typer.echo(f"fastdef: {lines.refused} of {lines.count} files have no answer: their lines say why", err=True)
        raise typer.Exit(1)


class _Lines:
    """A JSON line for each file on stdout, in the order in which they came.

    Attributes:
        count: of files so far.
        refused: of them, those with an error for an answer.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.count = self.refused = 0
        self._classes = classes
        self._waiting: deque[tuple[Path, ValueError | None]] = deque()

    def expect(self, path: Path) -> None:
        """A file that will be answered."""
        self.count += 1
        self._waiting.append((path, None))

    def refuse(self, path: Path, error: ValueError) -> None:
        """A file that will not."""
        self.count += 1
        self.refused += 1
        self._waiting.append((path, error))

    def answer(self, result: Result) -> None:
        """The answer to the next file that waits for one."""
        self.end()
        path, _ = self._waiting.popleft()
        probability, label = result.logits.exp().max(0)
        answered = math.isfinite(probability)  # not where its smoothing never began, or the classifier gave NaN
        _write(
            {
                "file": str(path),
                "class": self._classes[int(label)] if answered else None,
                "probability": round(float(probability), 6) if answered else None,
                "steps": result.steps,
                "converged": result.converged,
            }
        )

    def end(self) -> None:
        """The errors of the files up to the next that waits for an answer."""
        while self._waiting and self._waiting[0][1] is not None:
            path, error = self._waiting.popleft()
            _write({"file": str(path), "error": " ".join(str(error).split())})


def _write(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
