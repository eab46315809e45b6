"""``fastdef evaluate``: accuracy against an attacker who does not know of the defense, or against all who do."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastdef import ranks
from fastdef.checkpoint import load_for, writing_aside
from fastdef.cli import honest
from fastdef.cli._shared import DEFAULT_DEVICE, Data, Device, Download, Limit, Root, check_device
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Attack, Evaluation
from fastdef.evaluation import evaluate as run

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def evaluate(
    model: Annotated[Path, typer.Argument(help="a model file; for the honest suite also a folder of an export")],
    data: Data,
    root: Root = None,
    download: Download = False,
    split: Annotated[str, typer.Option(help="train, fit, validation, test or all")] = "test",
    limit: Limit = None,
    suite: Annotated[str, typer.Option(help="static: one attack on the undefended model; honest: all there are")] = (
        "static"
    ),
    eps: Annotated[float, typer.Option(help="radius of the attack, in 255ths")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="of the static attack")] = 20,
    loss: Annotated[str, typer.Option(help="of the static attack: cross_entropy or margin (C&W)")] = "cross_entropy",
    delta: Annotated[float | None, typer.Option(help="threshold of the defense, if not its calibrated one")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps of the defense an image may take")] = None,
    outer_loops: Annotated[int | None, typer.Option(min=1, help="runs of the defense averaged")] = None,
    undefended: Annotated[bool, typer.Option("--undefended", help="leave the defense out")] = False,
    dtype: Annotated[str, typer.Option(help="of the defense's convolutions: float32, float16 or bfloat16")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="of the static attack")] = 256,
    budget: Annotated[str, typer.Option(help="of the honest suite: smoke, standard or full")] = "smoke",
    rows: Annotated[str, typer.Option(help="of the honest suite")] = "0,1,2,3,4,5,6,7",
    surrogate: Annotated[
        Path | None, typer.Option(help="an independent model, for the honest suite's transfer")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="folder of the honest suite's state and report")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the folder's work")] = False,
    compile: Annotated[bool | None, typer.Option(help="torch.compile the defense's step")] = None,
    device: Device = DEFAULT_DEVICE,
    seed: Annotated[int, typer.Option(help="of the attack and of the defense's noise")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Print what attacks leave of a model, with counts and 95 % intervals.

    The static suite's attack is crafted on the undefended classifier: an attacker who does not know of the defense. The
    honest one's attackers know everything; its state is kept in the report's folder, and status 1 says that one of its
    checks on itself failed.
    """
    if suite not in ("static", "honest"):
        raise ValueError(f"--suite needs static or honest, got {suite!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype needs one of {', '.join(_DTYPES)}, got {dtype!r}")
    place = check_device(device)
    dataset = load_dataset(data, split, root=root, download=download)
    dataset = (dataset if limit is None else dataset.take(limit)).to(place)
    given = {"delta": delta, "max_steps": max_steps, "outer_loops": outer_loops, "compile": compile}
    options: dict[str, Any] = {"seed": seed, "dtype": _DTYPES[dtype], "compile": suite == "static" or budget != "smoke"}
    options |= {name: value for name, value in given.items() if value is not None}
    if suite == "honest":
        passed = honest.run(
            honest.target_of(model, dataset, undefended=undefended, options=options),
            dataset,
            budget=budget,
            eps=eps / 255,
            surrogate=None if surrogate is None else load_for(surrogate, dataset, device=place).model,
            rows=rows,
            seed=seed,
            report=report,
            resume=resume,
            json_file=json_file,
            name=model.stem if model.stem != "model" else model.resolve().parent.name,
        )
        if not passed:
            raise typer.Exit(1)
        return
    checkpoint = load_for(model, dataset, device=place)
    defense = None
    if checkpoint.defense is not None and not undefended:
        defense = ActiveDefense.from_checkpoint(checkpoint, **options)
    attack = Attack(eps=eps / 255, steps=steps, loss=loss, seed=seed)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=len(dataset))
        found = run(
            checkpoint.model,
            dataset,
            defense=defense,
            attack=attack,
            batch_size=batch_size,
            progress=lambda images: bar.advance(task, images),
        )
    Console().print(_table(found))
    if json_file is not None and ranks.rank() == 0:
        with writing_aside(json_file) as aside:
            aside.write_text(json.dumps(found.to_json(), indent=1) + "\n")


def _table(found: Evaluation) -> Table:
    attack = found.attack
    table = Table(
        title=f"{found.data}; attacked: PGD-{attack.steps} on {attack.loss}, eps {attack.eps * 255:g}/255, "
        "crafted on the undefended classifier"
    )
    for column in ("images", "accuracy", "95 % interval", "right/all", "steps median/max", "unconverged", "ms/image"):
        table.add_column(column, justify="left" if column == "images" else "right")
    for row in found.rows:
        low, high = row.accuracy.interval
        line = row.to_json()
        table.add_row(
            row.name,
            f"{row.accuracy.value:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{row.accuracy.correct}/{row.accuracy.count}",
            f"{line['steps_median']}/{line['steps_max']}" if row.steps else "",
            str(row.unconverged) if row.steps else "",
            f"{row.seconds * 1e3:.2f}",
        )
    return table
