"""``fastdef evaluate-adaptive``: what is deployed, under every adaptive attack there is."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastdef import distributed
from fastdef._cluster import check_replica_device
from fastdef._validate import check_installed
from fastdef.checkpoint import check_classes, load_for
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
    refuse,
)
from fastdef.cli._ranks import on_replicas
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Json, Source, check_device, parse_list
from fastdef.data import Dataset
from fastdef.evaluation.adaptive import BUDGETS, AdaptiveResults, Target, write_report
from fastdef.evaluation.adaptive import Progress as Where
from fastdef.evaluation.adaptive import evaluate_adaptive as run
from fastdef.io import write_json


def evaluate_adaptive(
    model: Annotated[Path, typer.Argument(help="a model file, or the folder of an export")],
    data: Data,
    root: Root = None,
    download: Download = False,
    background: Background = None,
    class_order: Order = "text",
    size: ImageSize = None,
    split: Split = "test",
    limit: Limit = None,
    budget: Annotated[str, typer.Option(help="screen, smoke, quick, standard or full")] = "smoke",
    rows: Annotated[
        str | None, typer.Option(help="of the table of attacks", show_default="0 to 8; of screen 0,3,6")
    ] = None,
    eps: Eps = 8.0,
    surrogate: Annotated[Path | None, typer.Option(help="an independent model, for the transfer attack")] = None,
    delta: Delta = None,
    max_steps: MaxSteps = None,
    outer_loops: OuterLoops = None,
    undefended: Undefended = False,
    dtype: DType = None,
    report: Annotated[Path | None, typer.Option(help="folder of the evaluation's state and report")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the folder's work")] = False,
    open_: Annotated[bool, typer.Option("--open", help="show the report in a browser")] = False,
    compile: Annotated[
        bool | None,
        typer.Option(help="torch.compile the defense's step", show_default="but for the smoke budget"),
    ] = None,
    device: Device = DEFAULT_DEVICE,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="processes of Ray, each with a device; needs a --report folder")
    ] = None,
    source: Source = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Print what adaptive attacks leave of a model, with counts and 95 % intervals, and the lowest of it.

    An adaptive attack uses everything but the noise. The state is kept in the report's folder. Status 1 says that
    one of the evaluation's checks on itself failed.
    """
    options = defense_options(
        undefended=undefended, delta=delta, max_steps=max_steps, outer_loops=outer_loops, dtype=dtype
    )
    eps, needs = radius(eps), "numbers from 0 to 8"
    numbers = None if rows is None else parse_list(rows, int, option="--rows", needs=needs)
    _check(budget, report, resume=resume, open_=open_)
    if replicas is not None:
        check_replica_device(device)
        if report is None:
            raise ValueError("--replicas need a --report folder, which all of them see")
        on_replicas(replicas, device)
    place = check_device(device)
    dataset = Reading(root, download, background, class_order, size).load(data, split, limit=limit).to(place)
    how = {"seed": seed, "compile": budget != "smoke" if compile is None else compile}
    target = _target(model, dataset, options, source=source, undefended=undefended, **how)
    other = None if surrogate is None else load_for(surrogate, dataset, device=place).model
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %")
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("attacking", total=1.0)

        def show(where: Where) -> None:
            bar.update(task, completed=where.share, description=f"{where.case} {where.done}/{where.total}")

        results = run(
            target,
            dataset,
            budget=BUDGETS[budget],
            eps=eps,
            surrogate=other,
            rows=numbers,
            seed=seed,
            folder=report,
            resume=resume,
            progress=show,
        )
    _print(results)
    if report is not None and distributed.rank() == 0:
        name = model.stem if model.stem != "model" else model.resolve().parent.name
        page = write_report(results, report, target, dataset, name=name)
        Console().print(f"wrote {page}", highlight=False)
        if open_:
            typer.launch(str(page))
    if json_file is not None and distributed.rank() == 0:
        write_json(json_file, results.to_json())
    if not results.passed:
        raise typer.Exit(1)


def table(results: AdaptiveResults) -> Table:
    """Every line that was evaluated."""
    settings = results.settings
    lines = Table(
        title=f"{settings['data']}, {settings['images']} images, budget {settings['budget']['name']}, "
        f"eps {settings['eps'] * 255:g}/255"
    )
    lines.add_column("attack", overflow="fold")
    for column, width in {"n": 4, "mean": 6, "95 %": 9, **({"worst of R": 10} if results.random else {})}.items():
        lines.add_column(column, justify="right", min_width=width)
    for line in results.lines:
        score = line.score
        if score is None:
            continue
        lines.add_row(
            line.label,
            str(score.count),
            f"{score.mean:.1%}",
            f"{100 * score.interval[0]:.0f} to {100 * score.interval[1]:.0f}",
            *([f"{score.worst:.1%}"] if results.random else []),
            style="bold" if line is results.headline else "" if line.case.counts else "dim",
        )
    return lines


def _check(budget: str, report: Path | None, *, resume: bool, open_: bool) -> None:
    if budget not in BUDGETS:
        raise ValueError(f"--budget needs one of {', '.join(BUDGETS)}, got {budget!r}")
    if resume and report is None:
        raise ValueError("--resume needs the --report folder of the run that it goes on with")
    if open_ and report is None:
        raise ValueError("--open needs a --report folder, whose page it shows")
    if report is not None:
        check_installed("jinja2", extra="eval", where="the report of the adaptive evaluation")


def _target(
    model: Path, dataset: Dataset, options: dict[str, Any], *, source: str | None, undefended: bool, **how: Any
) -> Target:
    """What is deployed: a model file with its defense, if it has one, or an export's folder."""
    if model.is_dir():
        from fastdef.export.manifest import MANIFEST, read_classes
        from fastdef.export.target import exported_target  # its packages are an extra

        given = {"undefended": undefended, "source": source, **options}
        refuse(given, "is for a model file: an export is attacked as it was written")
        check_classes(model, read_classes(model / MANIFEST), dataset)
        return exported_target(model, seed=how["seed"])
    checkpoint = load_for(model, dataset, device=dataset.images.device, source=source)
    defense = defense_of(checkpoint, options, undefended=undefended, **how)
    return Target.plain(checkpoint.model) if defense is None else Target.defended(defense)


def _print(results: AdaptiveResults) -> None:
    console = Console()
    console.print(table(results))
    for case in results.not_run:
        console.print(f"[dim]not run: {case.row} {case.name}: {case.reason}[/dim]", highlight=False)
    for check in results.checks:
        console.print(f"{'passed' if check.passed else 'FAILED'}: {check.name} ({check.detail})", highlight=False)
    console.print(results.sentence, highlight=False)
