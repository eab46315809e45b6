"""The papers' tables and figures: what they have, what comes out here, and the difference.

    python -m benchmarks.reproduce smoothing --root FOLDER --out DIR [--preset short] [--minutes 9]
    python -m benchmarks.reproduce afa --root FOLDER --out DIR [--preset short] [--minutes 9]

Every stage is a command of the package; the same call goes on where the last one stopped. ``table.md`` comes last.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.reproduce import afa, smoothing
from benchmarks.reproduce.stages import run
from benchmarks.reproduce.tables import write_table
from fastdef.bench.machine import machine

PRESETS = ("short", "paper")
Root = Annotated[Path, typer.Option(help="folder of the data set")]
Out = Annotated[Path, typer.Option(help="folder of the runs")]
Data = Annotated[str, typer.Option(help="name of the data set; the papers' figures are of cifar10")]
Preset = Annotated[str, typer.Option(help="short: ten minutes on a large GPU; paper: the papers' lengths")]
Minutes = Annotated[float | None, typer.Option(help="stop after as many; the same call goes on")]
Epochs = Annotated[int | None, typer.Option(help="other than the preset's")]
Architecture = Annotated[str | None, typer.Option(help="other than the preset's")]
Images = Annotated[int | None, typer.Option(help="training images, other than all")]
Budget = Annotated[str | None, typer.Option(help="of the honest suite, other than the preset's")]
Limit = Annotated[int | None, typer.Option(help="test images, other than the preset's")]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@app.command("smoothing")
def run_smoothing(
    root: Root,
    out: Out,
    data: Data = "cifar10",
    preset: Preset = "short",
    minutes: Minutes = None,
    epochs: Epochs = None,
    architecture: Architecture = None,
    train_limit: Images = None,
    limit: Limit = None,
    budget: Budget = None,
    device: str = DEVICE,
) -> None:
    """Paper 003: training with the smoothing loss, and Active Defense."""
    _check(preset)
    options = ["--data", data, "--root", str(root)]
    short = smoothing.Plan(options, "wrn-28-10", 6, None, 128, "standard", "0,1,2,3,5", device)
    plan = short if preset == "short" else replace(short, epochs=100, limit=1000, rows="0,1,2,3,4,5,6,7")
    plan = replace(
        plan,
        epochs=epochs or plan.epochs,
        architecture=architecture or plan.architecture,
        train_limit=train_limit,
        limit=limit or plan.limit,
        budget=budget or plan.budget,
    )
    if run(smoothing.stages(plan, out), out, minutes=minutes):
        smoothing.draw(out)
        write_table(smoothing.figures(out), out / "table.md", title="Active Defense", note=_note(plan, data))
        print((out / "table.md").read_text())


@app.command("afa")
def run_afa(
    root: Root,
    out: Out,
    data: Data = "cifar10",
    preset: Preset = "short",
    minutes: Minutes = None,
    epochs: Epochs = None,
    architecture: Architecture = None,
    train_limit: Images = None,
    limit: Limit = None,
    methods: Annotated[str | None, typer.Option(help="other than the preset's, separated by commas")] = None,
    device: str = DEVICE,
) -> None:
    """Paper 000: the baselines, and AFA on each."""
    _check(preset)
    options = ["--data", data, "--root", str(root)]
    short = afa.Plan(options, "wrn-16-8", "resnet-50-16", 5, 2, ("pgd-at",), (), None, 512, device)
    long = replace(
        short,
        surrogate="resnet-50",
        epochs=100,
        fusing_epochs=20,
        methods=("pgd-at", "trades", "iat", "mart"),
        branches=tuple(afa.BRANCHES),
        limit=10_000,
    )
    plan = short if preset == "short" else long
    plan = replace(
        plan,
        epochs=epochs or plan.epochs,
        fusing_epochs=epochs or plan.fusing_epochs,
        architecture=architecture or plan.architecture,
        surrogate="resnet-50-2" if architecture else plan.surrogate,
        methods=tuple(methods.split(",")) if methods else plan.methods,
        train_limit=train_limit,
        limit=limit or plan.limit,
    )
    if run(afa.stages(plan, out), out, minutes=minutes):
        write_table(afa.figures(plan, out), out / "table.md", title="AFA", note=_note(plan, data))
        print((out / "table.md").read_text())


def _check(preset: str) -> None:
    if preset not in PRESETS:
        raise SystemExit(f"reproduce needs a preset among {', '.join(PRESETS)}, got {preset!r}")


def _note(plan: smoothing.Plan | afa.Plan, data: str) -> str:
    facts = machine(torch.device(plan.device))
    there = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    return f"{data}, {plan.architecture}, {plan.epochs} epochs, accuracy in %. {there}."


if __name__ == "__main__":
    app()
