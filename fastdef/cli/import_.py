"""``fastdef import``: another code base's checkpoint into a model file."""

from pathlib import Path
from typing import Annotated

import typer

from fastdef.checkpoint import import_foreign, save
from fastdef.nn import architecture_of, parse_architecture


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="a .pt or .pth file of RobustBench, TRADES or MART")],
    architecture: Annotated[str, typer.Option(help="wrn-28-10, preactresnet-18, resnet-34, ...")],
    out: Annotated[Path, typer.Option(help="the model file to write")],
    num_classes: Annotated[int, typer.Option(min=2)] = 10,
    in_channels: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Turn a foreign checkpoint into a model file. Reads tensors only: nothing in the file is executed."""
    described = parse_architecture(architecture, num_classes=num_classes, in_channels=in_channels)
    model = import_foreign(checkpoint, described)
    classes = [str(number) for number in range(num_classes)]
    save(out, model, architecture=architecture_of(model), classes=classes)
    typer.echo(f"wrote {out}")
