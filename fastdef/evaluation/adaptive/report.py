"""The results of a suite, on paper: one HTML page that needs nothing beside it, JSON, CSV, and a RobustBench entry."""

import csv
import json
from pathlib import Path
from typing import Any

from fastdef._validate import check_installed
from fastdef._version import VERSION
from fastdef.data import Dataset
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.evaluation.adaptive.first_screen import bars, pictures
from fastdef.evaluation.adaptive.pictures import draw_curves, draw_examples, draw_steps
from fastdef.evaluation.adaptive.results import AdaptiveResults
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.rows.static import NAME as AUTOATTACK
from fastdef.evaluation.adaptive.target import Target
from fastdef.io import atomic_write, write_json

_COLUMNS = [
    *(
        "row",
        "name",
        "eps",
        "counts",
        "count",
        "noise_samples",
        "mean",
        "deviation",
        "interval",
        "worst",
        "majority",
        "one_shot",
        *("loss", "unanswered"),
    ),
    *("steps_median", "steps_most", "capped", "seconds_to_attack_an_image", "seconds_to_answer_an_image"),
    *("seed", "device", "dtype"),
]


def write_report(results: AdaptiveResults, folder: Path, target: Target, dataset: Dataset, *, name: str) -> Path:
    """Write ``report.html``, ``report.json``, ``report.csv`` and, for a model that qualifies, ``robustbench.json``.

    Args:
        results: of :func:`evaluate_adaptive`.
        folder: to write to; it exists.
        target: that was attacked.
        dataset: that it was attacked on.
        name: of the model, for the title.

    Returns:
        The page.

    Raises:
        ValueError: if a file cannot be written, or a library is missing.
    """
    check_installed("jinja2", extra="eval", where="the report of the adaptive evaluation")
    dataset = dataset.subset(results.settings["images"])  # as it was evaluated: places are in that order
    entry, reason = robustbench(results, target, dataset, name=name)
    write_json(folder / "report.json", results.to_json())
    with atomic_write(folder / "report.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(results.lines_json())
    if entry is not None:
        write_json(folder / "robustbench.json", entry)
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(_page(results, target, dataset, name=name, robustbench=reason))
    return folder / "report.html"


def robustbench(
    results: AdaptiveResults, target: Target, dataset: Dataset, *, name: str
) -> tuple[dict[str, Any] | None, str]:
    """An entry as RobustBench's model_info files have it, or None; and why, in words.

    RobustBench takes classifiers whose every answer is one deterministic forward with gradients, and asks for
    AutoAttack as it is published.
    """
    if target.classifier is None:
        return None, "RobustBench does not take what only answers: gradients are needed."
    if target.purify is not None:
        return None, "RobustBench does not take this defense: it optimises, or draws noise, at test time."
    clean, attacked = results.line(0, sanity.CLEAN), results.line(1, AUTOATTACK)
    if clean is None or attacked is None or clean.score is None or attacked.score is None:
        return None, "RobustBench needs rows 0 and 1."
    if results.settings["budget"]["autoattack"] != AutoAttackEffort().__dict__:
        return None, "The model is of a kind that RobustBench takes, but this budget cuts AutoAttack down."
    entry = {
        "name": name,
        "dataset": dataset.name,
        "architecture": type(target.classifier).__name__,
        "eps": f"{results.settings['eps'] * 255:g}/255",
        "number_forward_passes": 1,
        "additional_data": False,
        "clean_acc": f"{100 * clean.score.mean:.2f}",
        "autoattack_acc": f"{100 * attacked.score.mean:.2f}",
        "unreliable": not results.passed,
        "images": attacked.score.count,
    }
    return entry, f"robustbench.json is shaped as its entries are; of the test set it covers {entry['images']} images."


def _page(results: AdaptiveResults, target: Target, dataset: Dataset, *, name: str, robustbench: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("fastdef.evaluation.adaptive", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html").render(
        name=name,
        results=results,
        headline=results.headline,
        version=VERSION,
        settings=results.settings,
        settings_text=json.dumps(results.settings, indent=1),
        robustbench=robustbench,
        curves=draw_curves(results),
        steps=draw_steps(results),
        examples=draw_examples(results, target, dataset),
        bars=bars(results),
        pictures=pictures(results, target, dataset),
    )
