"""``fastdef evaluate``: accuracy clean and attacked, undefended and defended."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastdef.checkpoint import load, writing_aside
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Attack, Evaluation
from fastdef.evaluation import evaluate as run


def evaluate(
    model: Annotated[Path, typer.Argument(help="a model file")],
    data: Annotated[str, typer.Option(help="name of a data set")],
    root: Annotated[Path | None, typer.Option(help="folder that holds it")] = None,
    download: Annotated[bool, typer.Option(help="fetch it from the hub")] = False,
    split: Annotated[str, typer.Option(help="train, fit, validation, test or all")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="first images only")] = None,
    eps: Annotated[float, typer.Option(help="radius of the attack, in 255ths")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="steps of the attack")] = 20,
    loss: Annotated[str, typer.Option(help="cross_entropy or margin (C&W)")] = "cross_entropy",
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps of the defense an image may take")] = None,
    outer_loops: Annotated[int | None, typer.Option(min=1, help="runs of the defense averaged")] = None,
    undefended: Annotated[bool, typer.Option("--undefended", help="leave the defense out")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    compile: Annotated[bool, typer.Option(help="torch.compile the defense's step")] = True,
    device: Annotated[str, typer.Option()] = "cpu",
    seed: Annotated[int, typer.Option(help="of the attack and of the defense's noise")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Print accuracy on clean and on attacked images, with counts and 95 % intervals.

    The attack is crafted on the undefended classifier: an attacker who does not know of the defense.
    """
    checkpoint = load(model, device=device)
    dataset = load_dataset(data, split, root=root, download=download)
    dataset = (dataset if limit is None else dataset.take(limit)).to(device)
    defense = None
    if checkpoint.defense is not None and not undefended:
        given = {"max_steps": max_steps, "outer_loops": outer_loops}
        options = {name: value for name, value in given.items() if value is not None}
        defense = ActiveDefense.from_checkpoint(checkpoint, seed=seed, compile=compile, **options)
    attack = Attack(eps=eps / 255, steps=steps, loss=loss, seed=seed)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
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
    if json_file is not None:
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
