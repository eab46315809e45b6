"""``fastdef train``: the training methods."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastdef.cli._shared import (
    DEFAULT_DEVICE,
    Data,
    Device,
    Download,
    Limit,
    Root,
    TrainingBar,
    channel_statistics,
    check_device,
    load_train,
)
from fastdef.nn import build, parse_architecture
from fastdef.training import Hyper, train_smoothing


def smoothing(
    data: Data,
    architecture: Annotated[str, typer.Option(help="wrn-28-10, preactresnet-18, resnet-34, ...")],
    out: Annotated[Path, typer.Option(help="folder of the run; model.safetensors is written there")],
    root: Root = None,
    download: Download = False,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[float, typer.Option(help="largest learning rate; 0.2 has collapsed the features")] = 0.05,
    weight_decay: Annotated[float, typer.Option(min=0)] = 5e-4,
    schedule: Annotated[str, typer.Option(help="onecycle or step")] = "onecycle",
    milestones: Annotated[str, typer.Option(help="epochs at which a step schedule falls")] = "75,90",
    clip: Annotated[float, typer.Option(min=0, help="largest gradient norm, 0 for none")] = 0.0,
    ema: Annotated[float, typer.Option(min=0, help="decay of the weights' average, 0 for none")] = 0.0,
    layer: Annotated[str, typer.Option(help="the layer whose output is smoothed")] = "block1",
    delta: Annotated[float, typer.Option(help="bound of the smoothing loss; 0 for standard training")] = 0.02,
    sigma: Annotated[float, typer.Option(help="noise of the defense")] = 0.075,
    beta: Annotated[float, typer.Option(help="step size of the defense")] = 80.0,
    ratio: Annotated[float, typer.Option(help="the defense's threshold over the clean L_F")] = 0.92,
    normalize: Annotated[bool, typer.Option(help="by the data's mean and deviation, inside the model")] = True,
    augment: Annotated[bool, typer.Option(help="random crop and flip")] = True,
    limit: Limit = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the step")] = False,
    bf16: Annotated[bool | None, typer.Option(help="bfloat16 autocast; on by default on CUDA")] = None,
    device: Device = DEFAULT_DEVICE,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on after the last finished epoch")] = False,
) -> None:
    """Standard training with the feature smoothing loss, then a calibrated Active Defense."""
    place = check_device(device)
    hyper = Hyper(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=_milestones(milestones),
        clip=clip,
        ema=ema,
        bf16=place.type == "cuda" if bf16 is None else bf16,
        compile=compile,
        seed=seed,
    )
    dataset, validation = load_train(data, root=root, download=download, limit=limit, device=place)
    mean, std = channel_statistics(dataset) if normalize else (None, None)
    channels = dataset.images.shape[1]
    described = parse_architecture(
        architecture, num_classes=len(dataset.classes), in_channels=channels, mean=mean, std=std
    )
    torch.manual_seed(seed)
    with TrainingBar(epochs, max(1, len(dataset) // batch_size), out) as bar:
        figures = train_smoothing(
            build(described).to(place),
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


def _milestones(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"--milestones needs epochs separated by commas, such as 75,90, got {text!r}")
    return tuple(int(part) for part in parts)
