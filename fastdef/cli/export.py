"""``fastdef export``: a model file as ONNX, defense and all."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastdef._validate import check_installed
from fastdef.assets import ASSETS
from fastdef.checkpoint import Checkpoint, check_whole, image_shape, load
from fastdef.cli._data import Reading
from fastdef.cli._shared import Json, Size, Source, parse_list, working
from fastdef.data import Dataset
from fastdef.evaluation import Attack
from fastdef.export.files import export_onnx
from fastdef.export.openvino_session import export_openvino
from fastdef.export.parity import check_parity
from fastdef.export.pt2 import export_pt2
from fastdef.export.quantized import cost, export_small
from fastdef.export.tensorrt_engines import EngineOptions, export_engines, tensorrt
from fastdef.export.triton_repository import write_repository
from fastdef.io import write_json

# The formats, and what each needs to be there.
_FORMATS: dict[str, Callable[[], object]] = {
    "onnx": lambda: None,
    "openvino": lambda: check_installed("openvino", extra="openvino", where="--format openvino"),
    "pt2": lambda: None,
    "tensorrt": tensorrt,
}
_TYPES = {str(dtype)[6:]: dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def export(
    model: Annotated[Path, typer.Argument(help="a model file")],
    out: Annotated[Path, typer.Option(help="folder to write to")],
    size: Size = None,
    source: Source = None,
    check: Annotated[bool, typer.Option(help="compare with PyTorch afterwards, on clean and attacked images")] = True,
    data: Annotated[str, typer.Option(help="data set to check on")] = "fashion-mnist",
    root: Annotated[Path, typer.Option(help="folder that holds it; the shipped images if not given")] = ASSETS,
    split: Annotated[str, typer.Option(help="of it: test, or all")] = "test",
    limit: Annotated[int, typer.Option(min=1, help="images to check on")] = 64,
    small: Annotated[
        bool, typer.Option("--small", help="the classifier in float16 and int8 too, with accuracies")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="of the networks inside: float32, float16, or bfloat16, for engines alone")
    ] = "float32",
    format: Annotated[str, typer.Option(help="onnx; or beside those files openvino, pt2 or tensorrt too")] = "onnx",
    batches: Annotated[str, typer.Option(help="smallest, best and largest batch of the engines")] = "1,64,256",
    version_compatible: Annotated[bool, typer.Option(help="engines that later TensorRTs take too")] = False,
    hardware_compatible: Annotated[bool, typer.Option(help="engines for all GPUs from Ampere on")] = False,
    timing_cache: Annotated[Path | None, typer.Option(help="file that TensorRT keeps measured kernels in")] = None,
    triton_repository: Annotated[Path | None, typer.Option(help="also a repository for Triton's server, here")] = None,
    name: Annotated[str, typer.Option(help="of the model on that server")] = "fastdef",
    json_file: Json = None,
) -> None:
    """Write classifier.onnx and, for a model with an Active Defense, defended.onnx, noised.onnx and step.onnx."""
    if dtype not in _TYPES:
        raise ValueError(f"--dtype needs to be among {', '.join(_TYPES)}, got {dtype!r}")
    if format not in _FORMATS:
        raise ValueError(f"--format needs to be among {', '.join(_FORMATS)}, got {format!r}")
    options = EngineOptions(_batches(batches), version_compatible, hardware_compatible, timing_cache)
    _FORMATS[format]()  # before the work
    if check or small:
        check_installed("onnxruntime", extra="export", where="its check")  # which they run
    checkpoint = load(model, source=source)
    check_whole(model, checkpoint.model)
    shape = image_shape(checkpoint, size)
    # The images after those that are judged are what int8 is calibrated on.
    dataset = (
        _images(Reading(root, size=size), data, split, 2 * limit if small else limit, shape) if check or small else None
    )
    figures: dict[str, Any] = {}
    with working("exporting"):
        written = export_onnx(checkpoint, out, shape=shape, dtype=_TYPES[dtype], masked=format == "tensorrt")
    _print(written)
    if small and dataset is not None:
        figures["small"] = _small(checkpoint, out, dataset)
    formats = {
        "openvino": lambda: export_openvino(out),
        "pt2": lambda: export_pt2(checkpoint, out, shape=shape, dtype=_TYPES[dtype]),
        "tensorrt": lambda: export_engines(out, options=options),
    }
    if format in formats:
        with working(f"writing {format}"):
            added = formats[format]()
        _print(added)
        written += added
    if triton_repository is not None:
        typer.echo(f"wrote {write_repository(out, triton_repository, name=name)}")
    if check and dtype != "float32":
        typer.echo("not checked: parity with PyTorch is of float32; see --small for what half precision costs")
    elif check and dataset is not None:
        figures["parity"] = _check(checkpoint, out, dataset.take(limit))
    if json_file is not None:
        write_json(json_file, {"files": {path.name: path.stat().st_size for path in written}, **figures})


def _print(written: list[Path]) -> None:
    for path in written:
        typer.echo(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def _batches(text: str) -> tuple[int, int, int]:
    needs = "three sizes, such as 1,64,256,"
    sizes = parse_list(text, int, option="--batches", needs=needs)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"--batches needs {needs} separated by commas, got {text!r}")
    return sizes[0], sizes[1], sizes[2]


def _images(reading: Reading, data: str, split: str, limit: int, shape: tuple[int, int, int]) -> Dataset:
    """So many images of a data set.

    Raises:
        ValueError: if they are not what the model takes.
    """
    dataset = reading.load(data, split, limit=limit)
    if dataset.images.shape[1:] != shape:
        raise ValueError(
            f"the export is checked on images of {shape}, got {data}'s of {tuple(dataset.images.shape[1:])}: "
            "give --data and --root, or --no-check"
        )
    return dataset


def _small(checkpoint: Checkpoint, out: Path, dataset: Dataset) -> dict[str, Any]:
    """Write the small classifiers, calibrated on one half of the images; print and return their cost on the other."""
    judged = len(dataset) // 2
    images, labels = dataset.floats(0, judged), dataset.labels[:judged]
    _print(export_small(checkpoint, out, dataset.floats(judged, len(dataset))))
    clean, attacked = cost(out, images, labels), cost(out, Attack()(checkpoint.model, images, labels), labels)
    typer.echo(f"clean, {clean}")
    typer.echo(f"attacked, {attacked}")
    return {"clean": asdict(clean), "attacked": asdict(attacked)}


def _check(checkpoint: Checkpoint, out: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """Print and return how the files compare with PyTorch on clean and on attacked images.

    Raises:
        ValueError: at the first that does not answer alike.
    """
    images = dataset.floats(0, len(dataset))
    attacked = Attack()(checkpoint.model, images, dataset.labels)
    held: list[dict[str, Any]] = []
    for name, given in (("clean", images), ("attacked", attacked)):
        with working(f"comparing with PyTorch on {len(given)} {name} images; --no-check leaves this out"):
            findings = check_parity(checkpoint, out, given)
        for finding in findings:
            typer.echo(f"{len(given)} {name} images, {finding}")
            if not finding.holds:
                raise ValueError(f"the exported files do not answer as PyTorch does on {name} images; first: {finding}")
            held.append({"images": name, **asdict(finding)})
    return held
