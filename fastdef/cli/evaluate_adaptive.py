"""``fastdef evaluate --suite honest``: a target under every attack there is."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from fastdef import distributed
from fastdef._validate import check_installed
from fastdef.data import Dataset
from fastdef.evaluation.adaptive import BUDGETS, AdaptiveResults, Target, honest, write_report
from fastdef.evaluation.adaptive import Progress as Where
from fastdef.io import atomic_write

BUDGET = "smoke"
ROWS = "0,1,2,3,4,5,6,7"


def run(
    target: Target,
    dataset: Dataset,
    *,
    budget: str = BUDGET,
    rows: str = ROWS,
    eps: float,
    surrogate: nn.Module | None,
    seed: int,
    report: Path | None,
    resume: bool,
    json_file: Path | None,
    name: str,
) -> bool:
    """Attack, print and write; returns whether the suite's checks on itself hold."""
    if budget not in BUDGETS:
        raise ValueError(f"--budget needs one of {', '.join(BUDGETS)}, got {budget!r}")
    if resume and report is None:
        raise ValueError("--resume needs the --report folder of the run that it goes on with")
    if report is not None:
        check_installed("jinja2", extra="eval", where="the honest suite's report")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("attacking", total=1.0)

        def told(where: Where) -> None:
            bar.update(task, completed=where.share, description=f"{where.case} {where.done}/{where.total}")

        found = honest(
            target,
            dataset,
            budget=BUDGETS[budget],
            eps=eps,
            surrogate=surrogate,
            rows=_parse(rows),
            seed=seed,
            folder=report,
            resume=resume,
            progress=told,
        )
    console = Console()
    console.print(table(found))
    for case in found.not_run:
        console.print(f"[dim]not run: {case.row} {case.name}: {case.reason}[/dim]", highlight=False)
    for check in found.checks:
        console.print(f"{'passed' if check.passed else 'FAILED'}: {check.name} ({check.told})", highlight=False)
    console.print(found.sentence, highlight=False)
    if report is not None and distributed.rank() == 0:
        console.print(f"wrote {write_report(found, report, target, dataset, name=name)}", highlight=False)
    if json_file is not None and distributed.rank() == 0:
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    return found.passed


def table(found: AdaptiveResults) -> Table:
    """Every line that was judged."""
    settings = found.settings
    lines = Table(
        title=f"{settings['data']}, {settings['images']} images, budget {settings['budget']['name']}, "
        f"eps {settings['eps'] * 255:g}/255"
    )
    lines.add_column("attack", overflow="fold")
    for column, width in {"n": 4, "mean": 6, "95 %": 9, **({"worst of R": 10} if found.random else {})}.items():
        lines.add_column(column, justify="right", min_width=width)
    for line in found.lines:
        score = line.score
        if score is None:
            continue
        lines.add_row(
            line.label,
            str(score.count),
            f"{score.mean:.1%}",
            f"{100 * score.interval[0]:.0f} to {100 * score.interval[1]:.0f}",
            *([f"{score.worst:.1%}"] if found.random else []),
            style="bold" if line is found.headline else "" if line.case.counts else "dim",
        )
    return lines


def _parse(rows: str) -> list[int]:
    try:
        return [int(row) for row in rows.split(",")]
    except ValueError as error:
        raise ValueError(f"--rows needs numbers from 0 to 7 separated by commas, got {rows!r}") from error
