"""``fastdef defend``: image files in, one JSON line an image out."""

import json
import math
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fastdef._cluster import check_replica_device
from fastdef.checkpoint import image_shape, load
from fastdef.cli._data import Background, tell_notes
from fastdef.cli._shared import Device, DType, Size, Source, check_device, parse_dtype
from fastdef.data import Decoder, EncodedImages, load_images
from fastdef.defense import ActiveDefense, Result
from fastdef.offline import Plan, Recipe, run

_MANY = "Many images"


def defend(
    model: Annotated[Path, typer.Argument(help="a model file with an active defense")],
    images: Annotated[
        list[Path], typer.Argument(help="PNG, JPEG, WebP, BMP or PNM files, or folders of them; with --out parquet too")
    ],
    size: Size = None,
    resize: Annotated[bool, typer.Option("--resize", help="scale images of another size")] = False,
    background: Background = None,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first file that cannot be answered")] = False,
    seed: Annotated[int | None, typer.Option(help="of the noise; drawn from the system if not given")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps an image may take")] = None,
    deadline: Annotated[float | None, typer.Option(min=0, help="seconds an image may take")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="bitwise the same answer alone, in any order and in any part")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder for the answers, in parquet files", rich_help_panel=_MANY)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the folder's work", rich_help_panel=_MANY)
    ] = False,
    part_size: Annotated[int, typer.Option(min=1, help="images of a file", rich_help_panel=_MANY)] = 1024,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="processes of Ray, each with a device", rich_help_panel=_MANY)
    ] = None,
    dtype: DType = "float32",
    compile: Annotated[bool, typer.Option(help="torch.compile the step; pays from some hundred images on")] = False,
    device: Device = "cpu",
    source: Source = None,
) -> None:
    """Classify image files behind the model's defense. Prints class, probability, steps and whether it converged.

    Class and probability are null where there is no answer: the deadline passed first, or the classifier gave NaN. A
    file that is no image, or not for sure what a viewer shows, has a line with its error; the others are answered, and
    the status is 1.

    With --out the answers are rows of parquet files in a folder, one an image, for as many images as there are: what an
    interrupt leaves is whole, and --resume goes on.
    """
    if out is not None:
        if strict or deadline is not None:
            raise ValueError("--out answers every image, however long it takes: it needs no --strict and no --deadline")
        if (precision := parse_dtype(dtype)) == "auto":
            raise ValueError("--out needs one --dtype for all parts, wherever they are made, got auto: name it")
        if replicas is not None:
            check_replica_device(device)
        recipe = Recipe(
            model=model.absolute() if model.exists() else model,  # else it is on the hub
            images=EncodedImages(images),
            seed=0,  # of the plan
            max_steps=max_steps,
            deterministic=deterministic,
            dtype=precision,
            compile=compile,
            size=size,
            resize=resize,
            background=background,
            device=device if replicas else str(check_device(device)),  # which may be of other machines
            source=source,
        )
        _defend_many(Plan.begin(out.absolute(), recipe, part_size=part_size, seed=seed, resume=resume), replicas)
        return
    if resume or replicas is not None:
        raise ValueError("--resume and --replicas need the --out folder that the answers go to")
    decoder = Decoder(background)
    checkpoint = load(model, device=check_device(device), source=source)
    options = {} if max_steps is None else {"max_steps": max_steps}
    defense = ActiveDefense.from_checkpoint(
        checkpoint, seed=seed, dtype=parse_dtype(dtype), compile=compile, deterministic=deterministic, **options
    )
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


def _defend_many(plan: Plan, replicas: int | None) -> None:
    count = len(plan.recipe.images)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        done = count - sum(len(plan.numbers(part)) for part in plan.todo())
        task = bar.add_task("images", total=count, completed=done)
        try:
            run(plan, replicas=replicas, progress=lambda images: bar.advance(task, images))
        except KeyboardInterrupt:
            typer.echo("fastdef: interrupted; add --resume to the same command to go on", err=True)
            raise typer.Exit(130) from None
    refused = plan.refused()
    typer.echo(f"{count} rows in {plan.parts} files in {plan.folder}, {refused} of them errors")
    if refused:
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
