"""``fastdef bench formats``: every format and engine of an export, side by side."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from fastdef.assets import ASSETS
from fastdef.bench.formats import Subject, bench_formats
from fastdef.checkpoint import load_for, save
from fastdef.cli._data import Reading
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Json, check_device, parse_list
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.export.files import export_onnx
from fastdef.export.openvino_session import export_openvino
from fastdef.export.pt2 import export_pt2
from fastdef.io import write_json
from fastdef.nn import build, parse_architecture


def formats(
    model: Annotated[Path | None, typer.Option(help="a model file with an active defense")] = None,
    architecture: Annotated[str | None, typer.Option(help="instead of a model: one with random weights")] = None,
    ratio: Annotated[float, typer.Option(help="its threshold, as a part of the clean L_F")] = 0.92,
    folder: Annotated[Path | None, typer.Option("--export", help="its export; made anew if not given")] = None,
    data: Annotated[str, typer.Option(help="name of a data set")] = "fashion-mnist",
    root: Annotated[Path, typer.Option(help="folder that holds it; the shipped images if not given")] = ASSETS,
    batches: Annotated[str, typer.Option(help="batch sizes")] = "1,8,64",
    turns: Annotated[int, typer.Option(min=1, help="timed runs of each")] = 10,
    lockstep: Annotated[bool, typer.Option(help="the loop too that steps the whole batch to the end; slow")] = False,
    device: Device = DEFAULT_DEVICE,
    json_file: Json = None,
) -> None:
    """Latency, rate, size, memory and agreement of an export in each format and engine, against PyTorch."""
    sizes = parse_list(batches, int, option="--batches", needs="sizes, such as 1,8,64,")
    if min(sizes) < 1:
        raise ValueError(f"--batches needs sizes from 1 up, got {batches!r}")
    if architecture is not None and (model is not None or folder is not None):
        raise ValueError("--architecture is in place of --model and --export, got both")
    check_device(device)
    dataset = Reading(root).load(data, "test", limit=max(sizes))
    images = dataset.floats(0, len(dataset))
    console = Console()
    with tempfile.TemporaryDirectory() as made:
        file = model or ASSETS / "smoothing.safetensors"
        if architecture is not None:
            file = _random(architecture, dataset, ratio, Path(made) / f"{architecture}.safetensors")
        if folder is None:
            console.print("[dim]exporting[/dim]")
            folder = _export(file, dataset, Path(made) / "export", masked=lockstep)
        report = bench_formats(
            Subject(file, folder, device),
            images,
            batches=sizes,
            turns=turns,
            step=lambda what: console.print(f"[dim]{what}[/dim]"),
            lockstep=lockstep,
        )
    report["data"] = f"{dataset.name} {dataset.split}"
    console.print(_printed(report, sizes))
    for name, row in report["formats"].items():
        console.print(f"{name}: {_facts(row)}", highlight=False)
    if json_file is not None:
        write_json(json_file, report)


def _random(architecture: str, dataset: Dataset, ratio: float, file: Path) -> Path:
    """A model file of random weights, its defense calibrated on the images."""
    torch.manual_seed(0)
    described = parse_architecture(architecture, num_classes=len(dataset.classes), in_channels=dataset.images.shape[1])
    network = build(described).eval()
    defense = ActiveDefense(network, compile=False)
    defense.calibrate(dataset.floats(0, len(dataset)), ratio=ratio)
    save(file, network, architecture=described, classes=dataset.classes, defense=defense.config())
    return file


def _export(file: Path, dataset: Dataset, folder: Path, *, masked: bool) -> Path:
    """In each format that this machine can write."""
    checkpoint = load_for(file, dataset, labels=False)
    channels, height, width = dataset.images.shape[1:]
    export_onnx(checkpoint, folder, shape=(channels, height, width), masked=masked)
    if importlib.util.find_spec("openvino"):
        export_openvino(folder)
    export_pt2(checkpoint, folder, shape=(channels, height, width))
    return folder


def _printed(report: dict[str, Any], sizes: tuple[int, ...]) -> Table:
    machine = report["machine"]
    table = Table(title=f"p50 / p99 ms; {machine['name']}, threads: {machine['threads']}, torch {machine['torch']}")
    for column in ("format", *(f"batch {size}" for size in sizes), f"images/s at {sizes[-1]}"):
        table.add_column(column, justify="left" if column == "format" else "right")
    for name, row in report["formats"].items():
        if "refused" in row:
            table.add_row(name, "refused")
            continue
        spreads = [row["batches"][size] for size in sizes]
        times = [f"{spread['p50'] * 1e3:.1f} / {spread['p99'] * 1e3:.1f}" for spread in spreads]
        table.add_row(name, *times, f"{spreads[-1]['images_per_second']:.1f}")
    return table


def _facts(row: dict[str, Any]) -> str:
    facts = f"files {row['file_bytes'] / 2**20:.1f} MiB, loaded in {row['load_seconds']:.2f} s"
    if "refused" in row:
        return f"{facts}, refused: {row['refused']}"
    return (
        f"{facts}, peak of the process {row['peak_bytes'] / 2**20:.0f} MiB, steps equal to PyTorch's for "
        f"{row['steps_equal']:.1%}, decisions for {row['decisions_equal']:.1%}"
    )
