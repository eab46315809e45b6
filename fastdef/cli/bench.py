"""``fastdef bench``: how fast it is here."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from fastdef.assets import ASSETS
from fastdef.bench.defense import Setting, bench_defense
from fastdef.bench.figure import waterfall
from fastdef.bench.growth import bench_growth
from fastdef.bench.solvers import bench_solvers
from fastdef.checkpoint import load_for
from fastdef.cli._data import Reading
from fastdef.cli._shared import DEFAULT_DEVICE, DTYPES, Device, Json, Source, check_device
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.io import write_json
from fastdef.nn import build, parse_architecture


def defense(
    model: Annotated[Path | None, typer.Option(help="a model file with an active defense")] = None,
    source: Source = None,
    architecture: Annotated[str | None, typer.Option(help="instead of a model: one with random weights")] = None,
    data: Annotated[str, typer.Option(help="name of a data set")] = "fashion-mnist",
    root: Annotated[Path, typer.Option(help="folder that holds it; the shipped images if not given")] = ASSETS,
    limit: Annotated[int, typer.Option(min=1, help="images")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="of the lockstep loops; slots of ours")] = 64,
    turns: Annotated[int, typer.Option(min=1, help="timed runs of each; the median counts")] = 3,
    beta: Annotated[float | None, typer.Option(help="step size, in place of the model file's")] = None,
    ratio: Annotated[float | None, typer.Option(help="calibrate the threshold to this part of the clean L_F")] = None,
    half: Annotated[str, typer.Option(help="none, float16 or bfloat16: one more contender")] = "bfloat16",
    growth: Annotated[bool, typer.Option(help="also cost by batch, image size and width")] = False,
    device: Device = DEFAULT_DEVICE,
    json_file: Json = None,
    figure: Annotated[Path | None, typer.Option(help="write the waterfall here, as PNG")] = None,
) -> None:
    """Active Defense from a paper's loop to ours, one technique at a time, on the same images in one run."""
    dataset = Reading(root).load(data, "test", limit=limit).to(check_device(device))
    images = dataset.floats(0, len(dataset))
    subject = _subject(model, architecture, dataset, device, {} if beta is None else {"beta": beta}, source)
    if ratio is not None:
        subject.calibrate(images, ratio=ratio)
    dtypes = {"none": None, **{name: dtype for name, dtype in DTYPES.items() if dtype.itemsize == 2}}
    if half not in dtypes:
        raise ValueError(f"--half needs to be among {', '.join(dtypes)}, got {half}")
    console = Console()
    setting = Setting(subject, images, min(batch_size, len(images)), turns)
    report = bench_defense(setting, half=dtypes[half], step=lambda what: console.print(f"[dim]{what}[/dim]"))
    report["data"] = f"{dataset.name} {dataset.split}"
    report["model"] = str(model or architecture or "shipped")
    if growth:
        report["growth"] = bench_growth(images.device)
    _print(console, report)
    if figure is not None:
        waterfall(report, figure)
    if json_file is not None:
        write_json(json_file, report)


def _subject(
    model: Path | None,
    architecture: str | None,
    dataset: Dataset,
    device: str,
    options: dict[str, Any],
    source: str | None,
) -> ActiveDefense:
    if model is not None and architecture is not None:
        raise ValueError("--architecture is in place of --model, got both")
    if architecture is not None:
        torch.manual_seed(0)
        channels = dataset.images.shape[1]
        described = parse_architecture(architecture, num_classes=len(dataset.classes), in_channels=channels)
        return ActiveDefense(build(described).eval().to(device), **options)
    path = model or ASSETS / "smoothing.safetensors"
    return ActiveDefense.from_checkpoint(load_for(path, dataset, device=device, labels=False, source=source), **options)


def _print(console: Console, report: dict) -> None:  # type: ignore[type-arg]
    machine = report["machine"]
    steps = report["steps"]
    table = Table(
        title=f"{report['images']} images of {report['data']}, steps p50/p95/p99 "
        f"{steps['p50']:.0f}/{steps['p95']:.0f}/{steps['p99']:.0f}; {machine['name']}, torch {machine['torch']}"
    )
    for column in ("contender", "images/s", "x naive", "useful steps"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, row in report["contenders"].items():
        table.add_row(
            name, f"{row['images_per_second']:.1f}", f"{row['ratio_to_naive']:.2f}", f"{row['useful_share']:.1%}"
        )
    console.print(table)
    memory = report["step_peak_bytes"]
    console.print(
        f"Peak memory of a step, batch {report['batch']}: naive {memory['naive'] / 2**20:.1f} MiB, "
        f"ours {memory['compiled'] / 2**20:.1f} MiB ({memory['compiled'] / memory['naive']:.2f} of it)."
    )
    for size, ways in report["latency_seconds"].items():
        for name, spread in ways.items():
            percentiles = ", ".join(f"{p} {value * 1e3:.1f} ms" for p, value in spread.items())
            console.print(f"Latency of a batch of {size}, {name}: {percentiles}.")
        times = {p: value / ways["undefended"][p] for p, value in ways["defended"].items()}
        console.print(f"The defense costs {times['p50']:.0f} times the classifier at p50, {times['p99']:.0f} at p99.")


def solvers(
    model: Annotated[Path | None, typer.Option(help="a model file with an active defense")] = None,
    source: Source = None,
    data: Annotated[str, typer.Option(help="name of a data set")] = "fashion-mnist",
    root: Annotated[Path, typer.Option(help="folder that holds it; the shipped images if not given")] = ASSETS,
    limit: Annotated[int, typer.Option(min=1, help="images")] = 256,
    device: Device = DEFAULT_DEVICE,
    json_file: Json = None,
) -> None:
    """What an accelerated descent saves and what it changes, beside Algorithm 1 as written."""
    dataset = Reading(root).load(data, "test", limit=limit).to(check_device(device))
    path = model or ASSETS / "smoothing.safetensors"
    defense = ActiveDefense.from_checkpoint(load_for(path, dataset, device=device, source=source))
    report = bench_solvers(defense, dataset)
    table = Table(title=f"{report['images']} images of {report['data']}; {report['machine']['name']}")
    for column in ("solver", "images", "accuracy", "steps mean/max", "pixel rms", "rms to gradient", "images/s"):
        table.add_column(column, justify="left" if column in ("solver", "images") else "right")
    for name, kinds in report["solvers"].items():
        for kind, row in kinds.items():
            table.add_row(
                name,
                kind,
                f"{row['accuracy']:.1%}",
                f"{row['steps_mean']:.1f}/{row['steps_max']}",
                f"{row['distance']['rms']:.4f}",
                f"{row['distance_to_gradient']['rms']:.4f}",
                f"{row['images_per_second']:.1f}",
            )
    Console().print(table)
    if json_file is not None:
        write_json(json_file, report)
