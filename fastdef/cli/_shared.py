"""What the commands that read data or train have in common."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastdef.checkpoint import Checkpoint
from fastdef.data import Dataset, load_dataset
from fastdef.training.state import FILE

Data = Annotated[str, typer.Option("--data", help="name of a data set")]
Root = Annotated[Path | None, typer.Option(help="folder that holds it")]
Download = Annotated[bool, typer.Option(help="fetch it from the hub")]
Limit = Annotated[int | None, typer.Option(min=1, help="first images only")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]

DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: if it is none, or not there.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the second
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device needs a device that is there, got {name!r}: {reason}") from error
    return device


def load_train(
    data: str, *, root: Path | None, download: bool, limit: int | None, device: torch.device
) -> tuple[Dataset, Dataset]:
    """What to fit to, and the last tenth of ``train``, to validate with; of its first ``limit`` images if given."""
    train = load_dataset(data, "train", root=root, download=download)
    train = train if limit is None else train.take(limit)
    return train.fit().to(device), train.validation().to(device)


def channel_statistics(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, rounded so that a model file reads well."""
    total = torch.zeros(dataset.images.shape[1], dtype=torch.float64, device=dataset.images.device)
    squares = torch.zeros_like(total)
    for chunk in dataset.images.split(4096):
        values = chunk.transpose(0, 1).flatten(1).float() / 255
        total += values.sum(1)
        squares += values.square().sum(1)
    count = dataset.images.numel() / len(total)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-6).sqrt()
    return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in std.tolist()]


def image_shape(checkpoint: Checkpoint, size: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the images that a model takes: of ``size``, or as its file says.

    Raises:
        ValueError: if neither says.
    """
    channels = checkpoint.architecture["in_channels"]
    if size is not None:
        return channels, size, size
    stored = (checkpoint.training or {}).get("shape")
    if not isinstance(stored, list) or len(stored) != 3 or not all(isinstance(n, int) and n > 0 for n in stored):
        raise ValueError("--size is needed, because the model file does not say what images it was trained on")
    return channels, stored[1], stored[2]


class TrainingBar:
    """A progress bar with the time left; an interrupt ends with status 130 and how to go on.

    Args:
        epochs: of the run.
        steps: in an epoch.
        folder: of the run.
    """

    def __init__(self, epochs: int, steps: int, folder: Path) -> None:
        self._steps = steps
        self._folder = folder
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task("starting", total=epochs * steps, rate="")
        self._moved = False

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            done = (self._folder / FILE).exists()
            told = "add --resume to the same command to go on" if done else "no epoch was done, nothing is kept"
            typer.echo(f"fastdef: interrupted; {told}", err=True)
            raise typer.Exit(130)

    def update(self, epoch: int, steps: int, figures: dict[str, float]) -> None:
        """Move to a step, and tell the figures; after an epoch, on a line of their own."""
        done = epoch * self._steps + steps
        if not self._moved and done > self._steps:  # resumed: what was done before took no time now
            self._bar.reset(self._task, completed=epoch * self._steps)
        self._moved = True
        if "seconds" in figures:
            told = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._bar.console.print(f"epoch {epoch + 1}: {told}", soft_wrap=True, highlight=False)
        else:
            self._bar.update(self._task, description=f"epoch {epoch + 1}, loss {figures['loss']:.4g}")
        speed = self._bar.tasks[0].speed
        self._bar.update(self._task, completed=done, rate="" if speed is None else f"{speed:.1f}/s")
