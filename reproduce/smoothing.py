"""Paper 003 (Active Defense): Figures 2 and 3, Tables 1 to 3, and adaptive attacks, which the paper does not have."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stages import Stage
from fastdef.io import atomic_write
from reproduce.tables import Figure

# CIFAR-10, WideResNet-28-10: (eps, outer loops) -> clean, and Table 1's columns where it has them.
PAPER = {
    (8, 1): {"clean": 85.35, "APGD-CE": 73.10, "AutoAttack": 62.31},
    (8, 10): {"clean": 86.69, "APGD-CE": 73.71, "AutoAttack": 68.54},
    (16, 1): {"clean": 85.21, "AutoAttack": 49.24},
    (16, 10): {"clean": 86.79, "AutoAttack": 54.24},
}
STANDARD_DEFENDED = {"clean": 16.20, "APGD-CE": 16.13, "AutoAttack": 7.40}  # Table 1, last line of its half
STANDARD_DELTA = "0.0562"  # with which the paper defends the standard model
PAPER_DELTA = "0.0124"
LAMBDAS = {  # Table 3: log10 |lambda| -> accuracy for a negative and a positive one
    -1.0: (72.95, 72.87),
    -0.25: (73.06, 72.91),
    0.5: (72.62, 72.7),
    1.25: (72.95, 72.76),
    2.0: (72.79, 72.43),
}
CLEAN_UNDEFENDED = {"smoothed": 95.02, "standard": 95.83}


TITLE = "Active Defense"


@dataclass(frozen=True)
class Plan:
    """What is run: data, architecture, epochs, images; budget and rows of evaluate-adaptive at eps 8, one loop."""

    architecture: str = "wrn-28-10"
    epochs: int = 6
    limit: int = 128
    budget: str = "standard"
    rows: str = "0,1,2,3,5"
    train_limit: int | None = None
    data: tuple[str, ...] = ()
    device: str = "cpu"


PRESETS = {
    "short": Plan(),
    "cpu": Plan(architecture="wrn-10-4", epochs=10, budget="quick"),
    "paper": Plan(epochs=100, limit=1000, rows="0,1,2,3,4,5,6,7"),
}


def stages(plan: Plan, out: Path) -> list[Stage]:
    """Two trainings, then every defended evaluation."""
    limit = [] if plan.train_limit is None else ["--limit", str(plan.train_limit)]
    found: list[Stage] = []
    for name, delta in (("smoothed", "0.02"), ("standard", "0")):
        command = ["train", "smoothing", *plan.data, "--architecture", plan.architecture, "--epochs", str(plan.epochs)]
        command += ["--delta", delta, *limit, "--bf16", "--compile", "--device", plan.device, "--out", str(out / name)]
        found.append(Stage(f"train-{name}", command, out / name / "state.safetensors"))
        command = ["evaluate", str(out / name / "model.safetensors"), *plan.data, "--undefended", "--steps", "1"]
        command += ["--limit", str(plan.limit), "--device", plan.device, "--json", str(out / f"clean-{name}.json")]
        found.append(Stage(f"clean-{name}", command))
    for eps, loops in PAPER:
        rows = plan.rows if (eps, loops) == (8, 1) else "0,1,2"
        options = ["--eps", str(eps), "--outer-loops", str(loops), "--rows", rows]
        found.append(_evaluate(plan, out, "smoothed", f"defended-eps{eps}-loops{loops}", options))
    options = ["--eps", "8", "--delta", PAPER_DELTA, "--rows", "0,1,2"]
    found.append(_evaluate(plan, out, "smoothed", "defended-paper-delta", options))
    options = ["--eps", "8", "--delta", STANDARD_DELTA, "--rows", "0,1,2"]
    found.append(_evaluate(plan, out, "standard", "standard-defended", options))
    return found


def figures(plan: Plan, out: Path) -> list[Figure]:
    """What the stages found, beside the paper's; and Figures 2 and 3, drawn."""
    _draw(out)
    found = [
        Figure("Section 5.1", f"clean accuracy, {name}, no defense", CLEAN_UNDEFENDED[name], *_clean(out, name))
        for name in CLEAN_UNDEFENDED
    ]
    for (eps, loops), paper in PAPER.items():
        found += _defended(f"eps {eps}, {loops} outer loops", out / f"defended-eps{eps}-loops{loops}", paper)
    found += _defended("eps 8, the paper's threshold", out / "defended-paper-delta", PAPER[8, 1])
    found += _defended("eps 8, standard training, defended", out / "standard-defended", STANDARD_DEFENDED)
    report = _report(out / "defended-eps8-loops1")
    for power, printed in LAMBDAS.items():
        for sign, paper_value in zip("-+", printed, strict=True):
            line = _line(report, 5, f"CE {sign} 10^{power:g} max(L_F, delta)")
            what = f"log10 lambda = {power:g}, {'negative' if sign == '-' else 'positive'}"
            found.append(Figure("Table 3", what, paper_value, 100 * line["mean"], line["count"]))
    lowest = min((line for line in report["lines"] if line["counts"]), key=lambda line: line["mean"])
    found.append(
        Figure("not there", f"adaptive headline: {report['headline_of']}", None, 100 * lowest["mean"], lowest["count"])
    )
    return found


def _draw(out: Path) -> None:
    """Figures 2 and 3: accuracy and L_F by epoch, with the smoothing loss and without."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(picture)
    left, right = picture.subplots(1, 2)
    for name in CLEAN_UNDEFENDED:
        log = _log(out / name)
        epochs = range(1, len(log) + 1)
        left.plot(epochs, [100 * entry["accuracy"] for entry in log], marker=".", label=name)
        right.plot(epochs, [entry["feature_loss"] for entry in log], marker=".", label=name)
    left.set_ylabel("validation accuracy, %")
    right.set_ylabel("L_F")
    right.set_yscale("log")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.legend(frameon=False)
    with atomic_write(out / "figures-2-3.png") as temporary:
        picture.savefig(temporary, format="png", dpi=120)


def _evaluate(plan: Plan, out: Path, model: str, name: str, options: list[str]) -> Stage:
    folder = out / name
    command = ["evaluate-adaptive", str(out / model / "model.safetensors"), *plan.data, *options]
    command += ["--budget", plan.budget, "--limit", str(plan.limit), "--device", plan.device, "--report", str(folder)]
    return Stage(name, command, folder / "settings.json")


def _defended(what: str, folder: Path, paper: dict[str, float]) -> list[Figure]:
    report = _report(folder)
    names = {"clean": (0, "clean"), "APGD-CE": (2, "APGD-CE on the same"), "AutoAttack": (2, "AutoAttack on the same")}
    lines = {column: _line(report, *key) for column, key in names.items()}
    return [
        Figure("Tables 1, 2", f"{what}: {column}", paper.get(column), 100 * line["mean"], line["count"])
        for column, line in lines.items()
    ]


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def _line(report: dict[str, Any], row: int, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(line for line in report["lines"] if (line["row"], line["name"]) == (row, name))
    return found


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _clean(out: Path, name: str) -> tuple[float, int]:
    """Accuracy in % of the undefended model on clean test images, and how many they are."""
    row = json.loads((out / f"clean-{name}.json").read_text())["rows"]["clean"]
    return 100 * row["value"], row["count"]
