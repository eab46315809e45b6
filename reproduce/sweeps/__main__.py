"""A planned sweep by one command; the same call goes on where the last one stopped.

    python -m reproduce.sweeps smoothing --data fashion-mnist --root FOLDER --out DIR [--minutes 9] [--preset cpu]

Every training is a command of the package, every measurement one of this folder. What is done is in ``points/``; from
it come ``table.md``, ``sweep.png`` and ``points.json``, after every call that has done something.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.stages import run
from reproduce.sweeps.plan import PRESETS, point, shipped, stages
from reproduce.sweeps.report import Point, write_report

SWEEPS = ("smoothing",)


def main(
    sweep: Annotated[str, typer.Argument(help="smoothing: when does Active Defense recover attacked images?")],
    root: Annotated[Path, typer.Option(help="folder of the data set")],
    out: Annotated[Path, typer.Option(help="folder of the sweep")],
    data: Annotated[str, typer.Option(help="cifar10 or fashion-mnist; any other of the package too")] = "cifar10",
    preset: Annotated[str, typer.Option(help="cpu: an hour on one core; gpu: WRN-28-10, hours")] = "cpu",
    minutes: Annotated[float | None, typer.Option(help="stop after as many; the same call goes on")] = None,
    only: Annotated[
        str | None, typer.Option(help="names of the plan's points to go through, separated by semicolons")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="other than the preset's, of every training")] = None,
    train_limit: Annotated[int | None, typer.Option(help="training images, other than the preset's")] = None,
    limit: Annotated[int | None, typer.Option(help="test images, other than the preset's")] = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the grid, measure every point, write the table and the figure."""
    if sweep not in SWEEPS or preset not in PRESETS:
        needed = f"a sweep among {', '.join(SWEEPS)} and a preset among {', '.join(PRESETS)}"
        raise SystemExit(f"sweeps needs {needed}, got {sweep!r} and {preset!r}")
    plan = PRESETS[preset]
    if data == "fashion-mnist":
        plan = replace(plan, trainings=(*plan.trainings, *shipped()))
    given = {"epochs": epochs, "images": train_limit}
    changed = {name: value for name, value in given.items() if value is not None}
    trainings = {training.name: replace(training, **changed) for training in plan.trainings}
    names = list(trainings) if only is None else only.split(";")
    if not set(names) <= set(trainings):
        raise SystemExit(f"sweeps needs names among {'; '.join(trainings)}, got {only!r}")
    plan = replace(plan, trainings=tuple(trainings[name] for name in names))
    if limit is not None:
        plan = replace(plan, limit=limit, aware=min(limit, plan.aware))
    done = run(stages(plan, out, data=["--data", data, "--root", str(root)], device=device), out, minutes=minutes)
    points = [Point.read(one, path) for one in trainings.values() if (path := point(out, one)).is_file()]
    if points:
        write_report(points, out)
        print((out / "table.md").read_text())
    if not done:
        print(f"{len(points)} of {len(trainings)} points; the same command goes on")


if __name__ == "__main__":
    typer.run(main)
