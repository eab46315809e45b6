"""Is ours any further from the truth than the naive loop is from itself?

    python -m benchmarks.agreement --root FOLDER --json OUT

Both loops smooth the same images with the same noise, in several batches, slots and threads. Each is held against the
naive loop in double precision, and against the naive loop in single precision on batches of 64. They differ in rounding
alone; in single precision a feature at the mean may get another sign for it, and that shows.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.programs import Agreement, Subject, naive, programs, threads
from fastdef.assets import ASSETS
from fastdef.bench.machine import machine
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense
from fastdef.io import write_json
from fastdef.nn import build, parse_architecture


def main(
    count: Annotated[int, typer.Option(min=1, help="images of each data set")] = 128,
    root: Annotated[Path | None, typer.Option(help="folder of CIFAR-10: a WRN-10-4 with random weights too")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Print a table for each subject, and write them as JSON."""
    subjects = {"shipped WRN-10-2, Fashion-MNIST": shipped(count)}
    if root is not None:
        subjects["WRN-10-4 with random weights, CIFAR-10"] = random_weights(root, count)
    found: dict[str, Any] = {"machine": machine(torch.device("cpu")), "images": count, "subjects": {}}
    with threads(1):  # but for the rows that say otherwise
        for name, subject in subjects.items():
            rows = compare(subject)
            show(f"{name}, {len(subject.images)} images", rows)
            compared = {
                program: {against: asdict(agreement) for against, agreement in row.items()}
                for program, row in rows.items()
            }
            found["subjects"][name] = {"defense": subject.defense.config(), "programs": compared}
    if json_file is not None:
        write_json(json_file, found)


def shipped(count: int) -> Subject:
    """The shipped model on shipped images."""
    images = load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, count)
    return Subject(ActiveDefense.from_checkpoint(load(ASSETS / "smoothing.safetensors"), compile=False), images)


def random_weights(root: Path, count: int) -> Subject:
    """What ``fastdef bench defense --architecture wrn-10-4 --data cifar10 --beta 160 --ratio 0.92`` defends."""
    images = load_dataset("cifar10", "test", root=root).floats(0, count)
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-4", num_classes=10, in_channels=3)).eval()
    defense = ActiveDefense(model, beta=160.0, compile=False)
    defense.calibrate(images, ratio=0.92)
    return Subject(defense, images)


def compare(subject: Subject) -> dict[str, dict[str, Agreement]]:
    """By program, how it agrees with the truth, and with the naive loop in single precision."""
    truth = naive(subject, torch.float64, batch=64)
    rows, single = {}, None
    for name, run in programs(subject).items():
        typer.echo(name, err=True)
        ends = run()
        single = single or ends  # the first is the naive loop on batches of 64
        rows[name] = {"truth": Agreement.of(ends, truth), "naive": Agreement.of(ends, single)}
    return rows


def show(title: str, rows: dict[str, dict[str, Agreement]]) -> None:
    """Print the table."""
    told = {"truth": "the naive loop in float64", "naive": "the naive loop in float32, batches of 64"}
    for against, what in told.items():
        table = Table(title=f"{title}: against {what}")
        for column in ("program", "steps equal", "apart", "within 1e-5", "median", "largest", "decisions equal"):
            table.add_column(column, justify="left" if column == "program" else "right")
        for program, row in rows.items():
            a = row[against]
            table.add_row(
                program,
                f"{a.steps_equal:.1%}",
                str(a.steps_apart),
                f"{a.within:.1%}",
                f"{a.median:.0e}",
                f"{a.largest:.0e}",
                f"{a.decisions_equal:.1%}",
            )
        Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
