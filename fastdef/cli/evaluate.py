"""``fastdef evaluate``: accuracy against an attacker who does not know of the defense, or against all who do."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from fastdef import distributed
from fastdef.checkpoint import Checkpoint, check_classes, load_for
from fastdef.cli import evaluate_adaptive
from fastdef.cli._shared import DEFAULT_DEVICE, Data, Device, Download, Limit, Root, Source, check_device
from fastdef.data import Dataset, load_dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Attack, Evaluation
from fastdef.evaluation import evaluate as run
from fastdef.evaluation.adaptive import Target
from fastdef.io import atomic_write

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_BATCH = 256


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
    steps: Annotated[
        int | None, typer.Option(min=1, help="of the static attack", show_default=str(Attack.steps))
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="of the static attack: cross_entropy or margin (C&W)", show_default=Attack.loss)
    ] = None,
    delta: Annotated[float | None, typer.Option(help="threshold of the defense, if not its calibrated one")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps of the defense an image may take")] = None,
    outer_loops: Annotated[int | None, typer.Option(min=1, help="runs of the defense averaged")] = None,
    undefended: Annotated[bool, typer.Option("--undefended", help="leave the defense out")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="of the defense's convolutions: float32, float16 or bfloat16", show_default="float32"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="of the static attack", show_default=str(_BATCH))
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="of the honest suite: smoke, quick, standard or full", show_default=evaluate_adaptive.BUDGET),
    ] = None,
    rows: Annotated[str | None, typer.Option(help="of the honest suite", show_default=evaluate_adaptive.ROWS)] = None,
    surrogate: Annotated[
        Path | None, typer.Option(help="an independent model, for the honest suite's transfer")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="folder of the honest suite's state and report")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the folder's work")] = False,
    compile: Annotated[bool | None, typer.Option(help="torch.compile the defense's step")] = None,
    device: Device = DEFAULT_DEVICE,
    source: Source = None,
    seed: Annotated[int, typer.Option(help="of the attack and of the defense's noise")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Print what attacks leave of a model, with counts and 95 % intervals.

    The static suite's attack is crafted on the undefended classifier: an attacker who does not know of the defense. The
    honest one's attackers know everything; its state is kept in the report's folder, and status 1 says that one of its
    checks on itself failed.
    """
    for_suite: dict[str, dict[str, Any]] = {
        "static": {"steps": steps, "loss": loss, "batch_size": batch_size},
        "honest": {"budget": budget, "rows": rows, "surrogate": surrogate, "report": report, "resume": resume},
    }
    for_defense = {"delta": delta, "max_steps": max_steps, "outer_loops": outer_loops, "dtype": dtype}
    _check(suite, for_suite, for_defense, undefended=undefended)
    if not 0 <= eps <= 255:
        raise ValueError(f"--eps needs a radius in 255ths, from 0 to 255, got {eps:g}")
    place = check_device(device)
    dataset = load_dataset(data, split, root=root, download=download)
    dataset = (dataset if limit is None else dataset.take(limit)).to(place)
    if compile is None:
        compile = suite == "static" or budget not in (None, "smoke")
    if suite == "static":
        checkpoint = load_for(model, dataset, device=place, source=source)
        defense = _defense(checkpoint, for_defense, undefended=undefended, seed=seed, compile=compile)
        attack = Attack(eps=eps / 255, seed=seed, **_given({"steps": steps, "loss": loss}))
        _static(checkpoint.model, dataset, defense, attack, batch_size=batch_size or _BATCH, json_file=json_file)
        return
    passed = evaluate_adaptive.run(
        _target(model, dataset, for_defense, source=source, undefended=undefended, seed=seed, compile=compile),
        dataset,
        **_given({"budget": budget, "rows": rows}),
        eps=eps / 255,
        surrogate=None if surrogate is None else load_for(surrogate, dataset, device=place).model,
        seed=seed,
        report=report,
        resume=resume,
        json_file=json_file,
        name=model.stem if model.stem != "model" else model.resolve().parent.name,
    )
    if not passed:
        raise typer.Exit(1)


def _check(suite: str, for_suite: dict[str, dict[str, Any]], for_defense: dict[str, Any], *, undefended: bool) -> None:
    """Refuse values that there are not, and options that would have no effect."""
    if suite not in for_suite:
        raise ValueError(f"--suite needs static or honest, got {suite!r}")
    for other in for_suite.keys() - {suite}:
        _refuse(for_suite[other], f"is for --suite {other}")
    if undefended:
        _refuse(for_defense, "is for the defense, and --undefended leaves it out")
    if for_defense["dtype"] not in (None, *_DTYPES):
        raise ValueError(f"--dtype needs one of {', '.join(_DTYPES)}, got {for_defense['dtype']!r}")


def _refuse(options: dict[str, Any], reason: str) -> None:
    """Refuse the first of the options that was given: it would be ignored, and its user misled."""
    for name in _given(options):
        raise ValueError(f"--{name.replace('_', '-')} {reason}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _defense(
    checkpoint: Checkpoint, options: dict[str, Any], *, undefended: bool, seed: int, compile: bool
) -> ActiveDefense | None:
    """What stands before a model, if anything does."""
    if checkpoint.defense is None:
        _refuse(options, "needs a model with a defense, and this one has none")
        return None
    if undefended:
        return None
    chosen = _given(options)
    if "dtype" in chosen:
        chosen["dtype"] = _DTYPES[chosen["dtype"]]
    return ActiveDefense.from_checkpoint(checkpoint, seed=seed, compile=compile, **chosen)


def _target(
    model: Path, dataset: Dataset, options: dict[str, Any], *, source: str | None, undefended: bool, **how: Any
) -> Target:
    """What is deployed: a model file with its defense, if it has one, or an export's folder."""
    if model.is_dir():
        from fastdef.export.manifest import MANIFEST, read_classes
        from fastdef.export.target import exported_target  # its packages are an extra

        _refuse(
            {"undefended": undefended, "source": source, **options},
            "is for a model file: an export is attacked as it was written",
        )
        check_classes(model, read_classes(model / MANIFEST), dataset)
        return exported_target(model, seed=how["seed"])
    checkpoint = load_for(model, dataset, device=dataset.images.device, source=source)
    defense = _defense(checkpoint, options, undefended=undefended, **how)
    return Target.plain(checkpoint.model) if defense is None else Target.defended(defense)


def _static(
    model: nn.Module,
    dataset: Dataset,
    defense: ActiveDefense | None,
    attack: Attack,
    *,
    batch_size: int,
    json_file: Path | None,
) -> None:
    """Attack, print and write."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=len(dataset))
        found = run(
            model,
            dataset,
            defense=defense,
            attack=attack,
            batch_size=batch_size,
            progress=lambda images: bar.advance(task, images),
        )
    Console().print(_table(found))
    if json_file is not None and distributed.rank() == 0:
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps(found.to_json(), indent=1) + "\n")


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
