"""What the commands that read a data set have in common: their options, and what they tell of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdef import distributed
from fastdef.checkpoint import LARGEST
from fastdef.data import Dataset, load_dataset, load_training

PANEL = "Data"
Data = Annotated[str, typer.Option("--data", help="name of a data set", rich_help_panel=PANEL)]
Root = Annotated[Path | None, typer.Option(help="folder that holds it", rich_help_panel=PANEL)]
Download = Annotated[bool, typer.Option(help="fetch it from the Hugging Face hub", rich_help_panel=PANEL)]
Limit = Annotated[
    int | None, typer.Option(min=1, help="so many images at random, stratified by class", rich_help_panel=PANEL)
]
Split = Annotated[str, typer.Option(help="train, fit, validation, test or all", rich_help_panel=PANEL)]
Background = Annotated[
    str | None,
    typer.Option(
        help="colour to put under images that are not opaque, such as white; refused without", rich_help_panel=PANEL
    ),
]
Order = Annotated[
    str,
    typer.Option(
        "--class-order",
        help="of class folders: text, as torchvision has it, or number",
        rich_help_panel=PANEL,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--size", min=1, max=LARGEST, help="height and width to scale images by class to", rich_help_panel=PANEL
    ),
]


@dataclass(frozen=True)
class Reading:
    """Where a data set lies, and how it is read."""

    root: Path | None
    download: bool = False
    background: str | None = None
    class_order: str = "text"
    size: int | None = None

    def load(self, name: str, split: str, *, limit: int | None = None) -> Dataset:
        """A split of a data set, or so many images of it; tells what its user should know of it, once."""
        dataset = load_dataset(name, split, **self._options())
        part = dataset if limit is None else dataset.subset(limit)
        tell_notes(part.notes)
        return part

    def load_training(self, name: str, *, limit: int | None = None) -> tuple[Dataset, Dataset]:
        """What to fit to, and what is held out to validate with; of ``limit`` images, nine tenths and a tenth.

        What is held out is so from every run, whatever its limit: nothing is calibrated on what a run was fitted to.

        Raises:
            ValueError: for fewer than ten images.
        """
        fit, validation = load_training(name, **self._options())
        if limit is not None:
            if limit < 10:
                raise ValueError(f"--limit needs ten images for a tenth to validate with, got {limit}")
            fit, validation = fit.subset(limit - limit // 10), validation.subset(limit // 10)
        tell_notes(tuple(dict.fromkeys(fit.notes + validation.notes)))
        return fit, validation

    def _options(self) -> dict[str, Any]:
        return self.__dict__


def tell_notes(notes: tuple[str, ...]) -> None:
    """A line for each on stderr, by one of several processes."""
    if distributed.rank() == 0:
        for note in notes:
            typer.echo(f"note: {note}", err=True)
