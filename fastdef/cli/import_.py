"""``fastdef import``: another code base's checkpoint into a model file."""

from pathlib import Path
from typing import Annotated

import typer

from fastdef.checkpoint import LARGEST, Checkpoint, check_classes, check_images, import_foreign, save
from fastdef.cli._data import Background, Download, Limit, Order, Reading, Root
from fastdef.cli._shared import Json, parse_list
from fastdef.data import Dataset
from fastdef.evaluation import Accuracy, accuracy
from fastdef.io import write_json
from fastdef.nn import architecture_of, parse_architecture

_BATCH = 256


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="a .pt or .pth file of RobustBench, TRADES, MART, MAIR, ...")],
    architecture: Annotated[str, typer.Option(help="wrn-28-10, preactresnet-18, resnet-34, dm-wrn-28-10, ...")],
    out: Annotated[Path, typer.Option(help="the model file to write")],
    num_classes: Annotated[int, typer.Option(min=2)] = 10,
    in_channels: Annotated[int, typer.Option(min=1)] = 3,
    mean: Annotated[
        str | None, typer.Option(help="that its training subtracted, such as 0.49,0.48,0.45, where the file lacks it")
    ] = None,
    std: Annotated[str | None, typer.Option(help="that its training divided by")] = None,
    weights: Annotated[
        str | None, typer.Option(help="last, best, model_ema, ...: which of them, where the file holds several")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="height and width of its images, for export and the like")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="name of a data set, on whose clean test images the model is tried")
    ] = None,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    limit: Limit = None,
    json_file: Json = None,
) -> None:
    """Turn a foreign checkpoint into a model file. Reads tensors only: nothing in the file is executed."""
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std go together, got one of them")
    constants = {
        name: list(parse_list(text, float, option=f"--{name}", needs="a number for each channel,"))
        for name, text in (("mean", mean), ("std", std))
        if text is not None
    }
    reading = Reading(root, download, background, class_order)
    dataset = None if data is None else reading.load(data, "test", limit=limit)
    described = parse_architecture(architecture, num_classes=num_classes, in_channels=in_channels, **constants)
    model = import_foreign(checkpoint, described, weights=weights)
    classes = [str(number) for number in range(num_classes)]
    training = None if size is None else {"shape": [in_channels, size, size]}
    imported = Checkpoint(model, architecture_of(model), tuple(classes), None, training)
    tried = None if dataset is None else _try(imported, checkpoint, dataset)
    save(out, model, architecture=imported.architecture, classes=classes, training=training)
    typer.echo(f"wrote {out}" if weights is None else f"wrote {out}, of the weights {weights!r}")
    if tried is not None:
        typer.echo(f"clean accuracy on {data} test: {tried}")
    if json_file is not None:
        clean = None if tried is None else tried.to_json()
        write_json(json_file, {"file": str(out), "architecture": imported.architecture, "clean": clean})


def _try(checkpoint: Checkpoint, path: Path, dataset: Dataset) -> Accuracy:
    """Of the clean images; near chance, the architecture, its activation or its normalization is another."""
    check_images(path, checkpoint, dataset)
    check_classes(path, checkpoint.classes, dataset)
    starts = range(0, len(dataset), _BATCH)
    batches = ((dataset.floats(i, i + _BATCH), dataset.labels[i : i + _BATCH]) for i in starts)
    return accuracy(checkpoint.model, batches)
