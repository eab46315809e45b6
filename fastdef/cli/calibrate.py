"""``fastdef calibrate``: a model file's defense, for other parameters or other data."""

from pathlib import Path
from typing import Annotated

import typer

from fastdef.cli._data import Background, Data, Download, ImageSize, Order, Reading, Root
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Json, Source, check_device, working
from fastdef.io import write_json
from fastdef.training import calibrate as run


def calibrate(
    model: Annotated[Path, typer.Argument(help="the model file, rewritten")],
    data: Data,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    size: ImageSize = None,
    split: Annotated[str, typer.Option(help="of which 2,000 images are used")] = "validation",
    layer: Annotated[str | None, typer.Option(help="the layer whose output is smoothed")] = None,
    sigma: Annotated[float | None, typer.Option(help="half width of the noise")] = None,
    beta: Annotated[float | None, typer.Option(help="step size")] = None,
    solver: Annotated[str | None, typer.Option(help="gradient, as in the paper, or polyak: fewer steps")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps an image may take")] = None,
    outer_loops: Annotated[int | None, typer.Option(min=1, help="runs of the defense averaged")] = None,
    ratio: Annotated[float, typer.Option(help="the threshold over the clean L_F")] = 0.92,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="see whether bfloat16 decides alike, for --dtype auto")
    ] = False,
    device: Device = DEFAULT_DEVICE,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Set a model file's Active Defense from clean images. What is not given stays as the file has it."""
    check_device(device)
    dataset = Reading(root, download, background, class_order, size).load(data, split)
    with working("calibrating"):
        defense = run(
            model,
            dataset,
            layer=layer,
            sigma=sigma,
            beta=beta,
            solver=solver,
            max_steps=max_steps,
            outer_loops=outer_loops,
            ratio=ratio,
            bfloat16=bfloat16,
            device=device,
            source=source,
        )
    typer.echo(f"wrote {model}: " + ", ".join(f"{name} {_short(value)}" for name, value in defense.items()))
    if json_file is not None:
        write_json(json_file, defense)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
