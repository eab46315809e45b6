"""What the training commands have in common: options, data, model, progress bar."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from fastdef.cli._shared import parse_list
from fastdef.data import Dataset
from fastdef.nn import build, parse_architecture
from fastdef.training.fit import MODEL
from fastdef.training.state import FILE

Architecture = Annotated[str, typer.Option(help="wrn-28-10, preactresnet-18, resnet-34, ...")]
Out = Annotated[Path, typer.Option(help="folder of the run; model.safetensors is written there")]
BatchSize = Annotated[int, typer.Option(min=1)]
WeightDecay = Annotated[float, typer.Option(min=0)]
Schedule = Annotated[str, typer.Option(help="onecycle or step")]
Clip = Annotated[float, typer.Option(min=0, help="largest gradient norm, 0 for none")]
Normalize = Annotated[bool, typer.Option(help="by the data's mean and deviation, inside the model")]
Augment = Annotated[bool, typer.Option(help="random crop and flip")]
Compile = Annotated[bool, typer.Option(help="torch.compile the step")]
Bf16 = Annotated[bool | None, typer.Option(help="bfloat16 autocast; on by default on CUDA")]
Seed = Annotated[int, typer.Option(min=0)]
Resume = Annotated[bool, typer.Option("--resume", help="go on after the last finished epoch")]


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


def build_model(name: str, dataset: Dataset, *, normalize: bool, seed: int, device: torch.device) -> nn.Module:
    """A freshly initialized network of that name for the images of a data set."""
    mean, std = channel_statistics(dataset) if normalize else (None, None)
    described = parse_architecture(
        name, num_classes=len(dataset.classes), in_channels=dataset.images.shape[1], mean=mean, std=std
    )
    torch.manual_seed(seed)
    return build(described).to(device)


def parse_milestones(text: str) -> tuple[int, ...]:
    """Epochs out of a text such as 75,90.

    Raises:
        ValueError: if it is another.
    """
    needs = "epochs, such as 75,90,"
    milestones = parse_list(text, int, option="--milestones", needs=needs)
    if min(milestones) < 0:
        raise ValueError(f"--milestones needs {needs} from 0 up, got {text!r}")
    return milestones


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
        self._was_there = (folder / MODEL).is_file()

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            done = (self._folder / FILE).exists()
            advice = "add --resume to the same command to go on" if done else "no epoch was done, nothing is kept"
            typer.echo(f"fastdef: interrupted; {advice}", err=True)
            raise typer.Exit(130)

    def update(self, epoch: int, steps: int, figures: dict[str, float]) -> None:
        """Move to a step, and tell the figures; after an epoch, on a line of their own."""
        done = epoch * self._steps + steps
        if not self._moved and done > self._steps:  # resumed: what was done before took no time now
            self._bar.reset(self._task, completed=epoch * self._steps)
        self._moved = True
        if "seconds" in figures:
            summary = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._bar.console.print(f"epoch {epoch + 1}: {summary}", soft_wrap=True, highlight=False)
        else:
            self._bar.update(self._task, description=f"epoch {epoch + 1}, loss {figures['loss']:.4g}")
        speed = self._bar.tasks[0].speed
        self._bar.update(self._task, completed=done, rate="" if speed is None else f"{speed:.1f}/s")

    def outcome(self, figures: dict[str, float]) -> str:
        """A line on the model file: written, with the last epoch's figures, or there since before."""
        path = self._folder / MODEL
        if self._was_there and not self._moved:
            return f"{path} is done: nothing left to train"
        summary = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        return f"wrote {path}: {summary}"
