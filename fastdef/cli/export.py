"""``fastdef export``: a model file as ONNX, defense and all."""

from pathlib import Path
from typing import Annotated

import typer

from fastdef.checkpoint import load
from fastdef.cli._shared import image_shape
from fastdef.data import load_dataset
from fastdef.demo.run import ASSETS
from fastdef.evaluation import Attack
from fastdef.export.files import export_onnx
from fastdef.export.parity import check_parity


def export(
    model: Annotated[Path, typer.Argument(help="a model file")],
    out: Annotated[Path, typer.Option(help="folder to write to")],
    size: Annotated[int | None, typer.Option(min=1, help="height and width; the model file's own if it says")] = None,
    check: Annotated[bool, typer.Option(help="compare with PyTorch afterwards, on clean and attacked images")] = True,
    data: Annotated[str, typer.Option(help="data set to check on")] = "fashion-mnist",
    root: Annotated[Path, typer.Option(help="folder that holds it; the shipped images if not given")] = ASSETS,
    limit: Annotated[int, typer.Option(min=1, help="images to check on")] = 64,
) -> None:
    """Write classifier.onnx and, for a model with an Active Defense, defended.onnx, noised.onnx and step.onnx."""
    checkpoint = load(model)
    shape = image_shape(checkpoint, size)
    for path in export_onnx(checkpoint, out, shape=shape):
        typer.echo(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    if not check or checkpoint.defense is None:
        return
    dataset = load_dataset(data, "test", root=root).take(limit)
    if dataset.images.shape[1:] != shape:
        raise ValueError(f"--data needs images of {shape}, as the model has, got {tuple(dataset.images.shape[1:])}")
    images = dataset.floats(0, len(dataset))
    attacked = Attack()(checkpoint.model, images, dataset.labels)
    for name, given in (("clean", images), ("attacked", attacked)):
        parity = check_parity(checkpoint, out, given)
        typer.echo(f"{name}: {parity}")
        if not parity.holds:
            raise ValueError(f"the exported files do not answer as PyTorch does on {name} images: {parity}")
