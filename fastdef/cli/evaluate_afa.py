"""``fastdef evaluate-afa``: models under white-box attacks of every strength, side by side."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastdef import distributed
from fastdef.checkpoint import load_for
from fastdef.cli._data import Background, Data, Download, ImageSize, Limit, Order, Reading, Root, Split
from fastdef.cli._evaluating import report_refusals
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Json, Source, check_device, parse_list
from fastdef.evaluation import Strengths, draw_strengths, evaluate_strengths, rounds
from fastdef.io import write_json


def evaluate_afa(
    models: Annotated[list[Path], typer.Argument(help="model files: plain, of stage I, or AFA")],
    data: Data,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    size: ImageSize = None,
    split: Split = "test",
    limit: Limit = None,
    eps: Annotated[str, typer.Option(help="strengths, in 255ths")] = "0,1,2,4,8",
    steps: Annotated[int, typer.Option(min=1, help="of PGD")] = 20,
    layer: Annotated[
        str | None, typer.Option(help="whose channels are followed over the strengths; the first group if not given")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images attacked at once")] = 256,
    device: Device = DEFAULT_DEVICE,
    source: Source = None,
    seed: Annotated[int, typer.Option(min=0, help="of the random starts")] = 0,
    json_file: Json = None,
    figure: Annotated[Path | None, typer.Option(help="write a PNG here")] = None,
) -> None:
    """Accuracy at each strength, and their mean; FGSM, C&W and the adaptive attack at the strongest.

    Status 1 says that the gradients of an attack vanished, so that its accuracy is no figure.
    """
    place = check_device(device)
    values = _parse(eps)
    dataset = Reading(root, download, background, class_order, size).load(data, split, limit=limit).to(place)
    loaded = {_name(path): load_for(path, dataset, device=place, parts=True, source=source) for path in models}
    if len(loaded) < len(models):
        raise ValueError("evaluate-afa needs models whose names, or folders' names, differ")
    evaluations: dict[str, Strengths] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        for name, checkpoint in loaded.items():
            task = bar.add_task(name, total=len(dataset) * rounds(checkpoint.model, strengths=values))
            evaluations[name] = evaluate_strengths(
                checkpoint.model,
                dataset,
                strengths=values,
                steps=steps,
                layer=layer,
                batch_size=batch_size,
                seed=seed,
                progress=lambda images, task=task: bar.advance(task, images),  # type: ignore[misc]
            )
    title = f"{dataset.name} {dataset.split}, {len(dataset)} images; white-box PGD-{steps}"
    console = Console()
    console.print(_table(evaluations, title))
    for name, one in evaluations.items():
        for attack, accuracy in one.strongest.items():
            console.print(f"{name}, eps {max(values) * 255:g}/255, {attack}: {accuracy}", highlight=False)
    if json_file is not None and distributed.rank() == 0:
        write_json(json_file, _record(evaluations, dataset.name, dataset.split, len(dataset), place))
    if figure is not None and distributed.rank() == 0:
        draw_strengths(evaluations, figure, title=title)
    report_refusals([f"{name}: {sentence}" for name, one in evaluations.items() for sentence in one.refusals])


def _parse(text: str) -> tuple[float, ...]:
    needs = "strengths from 0 to 255, such as 0,1,2,4,8,"
    values = parse_list(text, float, option="--eps", needs=needs)
    if not all(0 <= value <= 255 for value in values):
        raise ValueError(f"--eps needs {needs} separated by commas, got {text!r}")
    return tuple(value / 255 for value in values)


def _name(path: Path) -> str:
    """The file's name, or the folder's where the file is called as the training commands call theirs."""
    return path.stem if path.stem != "model" else path.resolve().parent.name


def _table(models: dict[str, Strengths], title: str) -> Table:
    table = Table(title=title)
    table.add_column("model")
    for value in next(iter(models.values())).strengths:
        table.add_column(f"eps {value * 255:g}", justify="right")
    table.add_column("mean", justify="right")
    for name, one in models.items():
        for row, accuracies in one.rows.items():
            label = name if len(one.rows) == 1 else f"{name}: {row}"
            table.add_row(label, *(f"{a.value:.1%}" for a in accuracies), f"{one.mean(row):.1%}")
        if any(shift.w1 is not None for shift in one.shifts):
            table.add_row(f"{name}: mean W1", *(f"{shift.w1[0]:.3f}" for shift in one.shifts if shift.w1), "")
    return table


def _record(models: dict[str, Strengths], data: str, split: str, images: int, device: torch.device) -> dict[str, Any]:
    return {
        "data": f"{data} {split}",
        "images": images,
        "device": str(device),
        "torch": torch.__version__,
        "models": {name: one.to_json() for name, one in models.items()},
    }
