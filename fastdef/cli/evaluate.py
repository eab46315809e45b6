"""``fastdef evaluate``: accuracy against a static attack."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastdef import distributed
from fastdef.checkpoint import load_for
from fastdef.cli._data import Background, Data, Download, ImageSize, Limit, Order, Reading, Root, Split
from fastdef.cli._evaluating import (
    Delta,
    DType,
    Eps,
    MaxSteps,
    OuterLoops,
    Seed,
    Undefended,
    defense_of,
    defense_options,
    radius,
    report_refusals,
)
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Json, Source, check_device
from fastdef.evaluation import Attack, Evaluation
from fastdef.evaluation import evaluate as run
from fastdef.io import write_json


def evaluate(
    model: Annotated[Path, typer.Argument(help="a model file")],
    data: Data,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    size: ImageSize = None,
    split: Split = "test",
    limit: Limit = None,
    eps: Eps = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="of the attack")] = Attack.steps,
    loss: Annotated[str, typer.Option(help="of the attack, one or several: cross_entropy, margin (C&W)")] = ",".join(
        Attack.losses
    ),
    delta: Delta = None,
    max_steps: MaxSteps = None,
    outer_loops: OuterLoops = None,
    undefended: Undefended = False,
    dtype: DType = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images attacked at once")] = 256,
    compile: Annotated[bool, typer.Option(help="torch.compile the defense's step")] = True,
    device: Device = DEFAULT_DEVICE,
    source: Source = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Print what a static attack leaves of a model, with counts and 95 % intervals.

    The attack is computed on the undefended classifier, without regard to the defense: an upper bound that says little.
    For adaptive attacks see ``fastdef evaluate-adaptive``. Status 1 says that the
    attack's gradients vanished, so that there is no figure.
    """
    options = defense_options(
        undefended=undefended, delta=delta, max_steps=max_steps, outer_loops=outer_loops, dtype=dtype
    )
    eps = radius(eps)
    place = check_device(device)
    dataset = Reading(root, download, background, class_order, size).load(data, split, limit=limit).to(place)
    checkpoint = load_for(model, dataset, device=place, source=source)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=len(dataset))
        evaluation = run(
            checkpoint.model,
            dataset,
            defense=defense_of(checkpoint, options, undefended=undefended, seed=seed, compile=compile),
            attack=Attack(eps=eps, seed=seed, steps=steps, losses=tuple(loss.split(","))),
            batch_size=batch_size,
            progress=lambda images: bar.advance(task, images),
        )
    Console().print(_table(evaluation))
    if json_file is not None and distributed.rank() == 0:
        write_json(json_file, evaluation.to_json())
    report_refusals(evaluation.refusals)


def _table(evaluation: Evaluation) -> Table:
    attack = evaluation.attack
    table = Table(
        title=f"{evaluation.data}; attacked: PGD-{attack.steps} on {' and '.join(attack.losses)}, "
        f"eps {attack.eps * 255:g}/255, crafted on the undefended classifier"
    )
    unanswered = any(row.unanswered for row in evaluation.rows)
    counts = ("right/all", "steps median/max", "unconverged", *(["NaN or Inf"] if unanswered else []))
    table.add_column("images")
    for column in ("accuracy", "95 % interval", *counts, "ms/image"):
        table.add_column(column, justify="right")
    for row in evaluation.rows:
        low, high = row.accuracy.interval
        line = row.to_json()
        table.add_row(
            row.name,
            "no figure" if row.refusal else f"{row.accuracy.value:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{row.accuracy.correct}/{row.accuracy.count}",
            f"{line['steps_median']}/{line['steps_max']}" if row.steps else "",
            str(row.unconverged) if row.steps else "",
            *([str(row.unanswered)] if unanswered else []),
            f"{row.seconds * 1e3:.2f}",
        )
    return table
