"""``fastdef train``: the training methods."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastdef.data import Dataset, load_dataset
from fastdef.nn import build, parse_architecture
from fastdef.training import Hyper, train_smoothing

Data = Annotated[str, typer.Option("--data", help="name of a data set")]
Root = Annotated[Path | None, typer.Option(help="folder that holds it")]
Out = Annotated[Path, typer.Option(help="folder of the run; model.safetensors is written there")]
Layer = Annotated[str, typer.Option(help="the layer whose output is smoothed")]
BF16 = Annotated[bool | None, typer.Option(help="bfloat16 autocast; on by default on CUDA")]


def smoothing(
    data: Data,
    architecture: Annotated[str, typer.Option(help="wrn-28-10, preactresnet-18, resnet-34, ...")],
    out: Out,
    root: Root = None,
    download: Annotated[bool, typer.Option(help="fetch the data from the hub")] = False,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[float, typer.Option(help="largest learning rate")] = 0.1,
    weight_decay: Annotated[float, typer.Option(min=0)] = 5e-4,
    schedule: Annotated[str, typer.Option(help="onecycle or step")] = "onecycle",
    milestones: Annotated[str, typer.Option(help="epochs at which a step schedule falls")] = "75,90",
    clip: Annotated[float, typer.Option(min=0, help="largest gradient norm, 0 for none")] = 0.0,
    ema: Annotated[float, typer.Option(min=0, help="decay of the weights' average, 0 for none")] = 0.0,
    layer: Layer = "block1",
    delta: Annotated[float, typer.Option(help="bound of the smoothing loss; 0 for standard training")] = 0.02,
    sigma: Annotated[float, typer.Option(help="noise of the defense")] = 0.075,
    beta: Annotated[float, typer.Option(help="step size of the defense")] = 80.0,
    ratio: Annotated[float, typer.Option(help="the defense's threshold over the clean L_F")] = 0.92,
    normalize: Annotated[bool, typer.Option(help="by the data's mean and deviation, inside the model")] = True,
    augment: Annotated[bool, typer.Option(help="random crop and flip")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="first images only")] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the step")] = False,
    bf16: BF16 = None,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last finished epoch")] = False,
) -> None:
    """Standard training with the feature smoothing loss, then a calibrated Active Defense."""
    dataset, validation = _load(data, root, download, limit, device)
    mean, std = _statistics(dataset) if normalize else (None, None)
    torch.manual_seed(seed)
    described = parse_architecture(
        architecture,
        num_classes=len(dataset.classes),
        in_channels=dataset.images.shape[1],
        mean=mean,
        std=std,
    )
    hyper = Hyper(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=tuple(int(epoch) for epoch in milestones.split(",")),
        clip=clip,
        ema=ema,
        bf16=torch.device(device).type == "cuda" if bf16 is None else bf16,
        compile=compile,
        seed=seed,
    )
    with TrainingBar(epochs, -(-len(dataset) // batch_size), resume=f"add --resume to go on from {out}") as bar:
        figures = train_smoothing(
            build(described).to(device),
            dataset,
            validation,
            hyper,
            out,
            layer=layer,
            delta=delta,
            sigma=sigma,
            beta=beta,
            ratio=ratio,
            augment=augment,
            resume=resume,
            progress=bar.update,
        )
    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    typer.echo(f"wrote {out / 'model.safetensors'}: {told}")


class TrainingBar:
    """A progress bar with the rate and the time left; an interrupt ends with status 130 and how to go on."""

    def __init__(self, epochs: int, steps: int, *, resume: str) -> None:
        self._steps = steps
        self._resume = resume
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        times = TimeElapsedColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, *times, console=Console(stderr=True))
        self._task = self._bar.add_task("steps", total=epochs * steps)

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            typer.echo(f"fastdef: interrupted; {self._resume}", err=True)
            raise typer.Exit(130)

    def update(self, epoch: int, steps: int, figures: dict[str, float]) -> None:
        """Move to a step, and tell the figures; after an epoch, on a line of their own."""
        self._bar.update(self._task, completed=epoch * self._steps + steps)
        told = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if "accuracy" in figures:
            self._bar.console.print(f"epoch {epoch + 1}: {told}")
        else:
            self._bar.update(self._task, description=told)


def _load(data: str, root: Path | None, download: bool, limit: int | None, device: str) -> tuple[Dataset, Dataset]:
    train = load_dataset(data, "train", root=root, download=download)
    train = train if limit is None else train.take(limit)
    return train.fit().to(device), train.validation().to(device)


def _statistics(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel, rounded so that a model file reads well."""
    pixels = dataset.floats(0, 10_000).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(1).tolist(), pixels.std(1).tolist()
    return [round(value, 4) for value in mean], [round(value, 4) for value in std]
