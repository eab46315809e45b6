"""The papers' tables and figures: what they have, what comes out here, and the difference.

    python -m reproduce smoothing --root FOLDER --out DIR [--preset short] [--minutes 9]
    python -m reproduce afa --root FOLDER --out DIR [--preset short] [--minutes 9]
    python -m reproduce both --root FOLDER --out DIR [--preset cpu]

Every stage is a command of the package; the same call goes on where the last one stopped. ``table.md`` comes last.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.stages import run
from fastdef.bench.machine import machine
from reproduce import afa, both, smoothing
from reproduce.tables import write_table

PAPERS = {"smoothing": smoothing, "afa": afa, "both": both}
PRESETS = ("short", "cpu", "paper")


def main(
    paper: Annotated[str, typer.Argument(help="smoothing: paper 003; afa: paper 000; both: in one model")],
    root: Annotated[Path, typer.Option(help="folder of the data set")],
    out: Annotated[Path, typer.Option(help="folder of the runs")],
    data: Annotated[str, typer.Option(help="name of the data set; the papers' figures are of cifar10")] = "cifar10",
    preset: Annotated[
        str, typer.Option(help="short: ten minutes on a large GPU; cpu: a few hours; paper: its lengths")
    ] = "short",
    minutes: Annotated[float | None, typer.Option(help="stop after as many; the same call goes on")] = None,
    epochs: Annotated[int | None, typer.Option(help="other than the preset's, of every stage")] = None,
    architecture: Annotated[str | None, typer.Option(help="other than the preset's")] = None,
    surrogate: Annotated[str | None, typer.Option(help="of afa: architecture of the black box's model")] = None,
    methods: Annotated[str | None, typer.Option(help="of afa: other than the preset's, separated by commas")] = None,
    budget: Annotated[str | None, typer.Option(help="of smoothing and both: of the adaptive evaluation")] = None,
    train_limit: Annotated[int | None, typer.Option(help="training images, other than all")] = None,
    limit: Annotated[int | None, typer.Option(help="test images, other than the preset's")] = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Go through a paper's tables and figures."""
    if paper not in PAPERS or preset not in PRESETS:
        needed = f"a paper among {', '.join(PAPERS)} and a preset among {', '.join(PRESETS)}"
        raise SystemExit(f"reproduce needs {needed}, got {paper!r} and {preset!r}")
    module = PAPERS[paper]
    plan = module.PRESETS[preset]
    given = {
        "data": ("--data", data, "--root", str(root)),
        "device": device,
        "epochs": epochs,
        "fusing_epochs": epochs,
        "architecture": architecture,
        "surrogate": surrogate,
        "methods": tuple(methods.split(",")) if methods else None,
        "budget": budget,
        "train_limit": train_limit,
        "limit": limit,
    }
    known = {field.name for field in fields(plan)}
    plan = replace(plan, **{name: value for name, value in given.items() if value is not None and name in known})
    if run(module.stages(plan, out), out, minutes=minutes):
        facts = machine(torch.device(device))
        there = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        note = f"{data}, {plan.architecture}, {plan.epochs} epochs, accuracy in %. {there}."
        write_table(module.figures(plan, out), out / "table.md", title=module.TITLE, note=note)
        print((out / "table.md").read_text())


if __name__ == "__main__":
    typer.run(main)
