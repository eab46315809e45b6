"""``fastdef layers``: which layer of a model to smooth."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fastdef.checkpoint import load_for
from fastdef.cli._data import PANEL, Background, Data, Download, ImageSize, Order, Reading, Root, Split
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Json, Source, check_device, working
from fastdef.defense import choose_layers
from fastdef.io import write_json


def layers(
    model: Annotated[Path, typer.Argument(help="a model file")],
    data: Data,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    size: ImageSize = None,
    split: Split = "test",
    limit: Annotated[int, typer.Option(min=2, help="so many images at random", rich_help_panel=PANEL)] = 128,
    sigma: Annotated[float, typer.Option(min=0.0, help="half width of the noise, in pixel units")] = 0.075,
    seed: Annotated[int, typer.Option(help="of the noise")] = 0,
    device: Device = DEFAULT_DEVICE,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Print the layers that could be smoothed: size, cost, what noise adds to L_F; the suggested one first.

    The order is of what noise does alone; whether smoothing helps is for ``fastdef evaluate-adaptive``.
    """
    place = check_device(device)
    dataset = Reading(root, download, background, class_order, size).load(data, split, limit=limit).to(place)
    checkpoint = load_for(model, dataset, device=place, labels=False, source=source)
    with working("measuring layers"):
        choices = choose_layers(checkpoint.model, dataset.floats(0, len(dataset)), sigma=sigma, seed=seed)
    table = Table(title=f"{len(dataset)} images of {dataset.name}, noise of {sigma:g}")
    for column in ("layer", "M", "cost", "L_F", "noised", "lift", "beta"):
        table.add_column(column, justify="left" if column == "layer" else "right", overflow="fold")
    for choice in choices:
        figures = f"{choice.cost:.0%}", f"{choice.loss:.4g}", f"{choice.noised:.4g}", f"{choice.lift:.2f}"
        table.add_row(choice.name, str(choice.features), *figures, f"{choice.beta:.3g}")
    Console().print(table)
    if json_file is not None:
        write_json(json_file, [choice.__dict__ for choice in choices])
