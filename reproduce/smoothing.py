"""Paper 003 (Active Defense): Figures 2 and 3, Tables 1 to 3, and adaptive attacks, which the paper does not have."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.stages import Stage
from fastdef.io import atomic_write
from reproduce.static import AUTOATTACK, COLUMNS
from reproduce.tables import Figure

# CIFAR-10, WideResNet-28-10: (eps, outer loops) -> clean, and Table 1's columns where it has them.
# CIFAR-10, WideResNet-28-10, Tables 1 and 2: (eps, outer loops) -> accuracy in % by column, where it has them.
PAPER = {
    (8, 1): {
        "clean": 85.35,
        "APGD-CE": 73.10,
        "APGD-T": 74.11,
        "FAB-T": 83.49,
        "Square": 76.73,
        "AutoAttack": 62.31,
    },
    (8, 10): {
        "clean": 86.69,
        "APGD-CE": 73.71,
        "APGD-T": 77.64,
        "FAB-T": 85.30,
        "Square": 79.03,
        "AutoAttack": 68.54,
    },
    (16, 1): {"clean": 85.21, "AutoAttack": 49.24},
    (16, 10): {"clean": 86.79, "AutoAttack": 54.24},
}
STANDARD_DEFENDED = {  # Table 1, last line of its half
    "clean": 16.20,
    "APGD-CE": 16.13,
    "APGD-T": 15.94,
    "FAB-T": 16.10,
    "Square": 15.79,
    "AutoAttack": 7.40,
}
STANDARD_DELTA = 0.0562  # with which the paper defends the standard model
PAPER_DELTA = 0.0124
LAMBDAS = {  # Table 3: log10 |lambda| -> accuracy for a negative and a positive one
    -1.0: (72.95, 72.87),
    -0.25: (73.06, 72.91),
    0.5: (72.62, 72.7),
    1.25: (72.95, 72.76),
    2.0: (72.79, 72.43),
}
CLEAN_UNDEFENDED = {"smoothed": 95.02, "standard": 95.83}
LAST_FEATURE_LOSS = {"smoothed": 0.0135, "standard": 0.0713}  # Section 5.1, of test images


TITLE = "Active Defense"


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        architecture: of both models.
        epochs: of both.
        beta: step size of the defense; the paper's 80 divided by M, the number of features, is the same for
            WRN-28-10 and 80, and for WRN-10-4 and 32.
        trend: other trainings with the smoothing loss, (architecture, epochs, beta).
        at_length: the training that is attacked at eps 16 and adaptively too: "smoothed" or one of the trend.
        limit: test images.
        budget: of the adaptive evaluation at eps 8 and one loop.
        rows: of it.
        paper_delta: also defend with the paper's thresholds, which a short training does not reach.
        train_limit: training images, all if None.
        data: options that name the data.
        device: where.
    """

    architecture: str = "wrn-28-10"
    epochs: int = 6
    beta: float = 80.0
    trend: tuple[tuple[str, int, float], ...] = ()
    at_length: str = "smoothed"
    limit: int = 128
    budget: str = "standard"
    rows: str = "0,3,5,8"
    paper_delta: bool = True
    train_limit: int | None = None
    data: tuple[str, ...] = ()
    device: str = "cpu"


PRESETS = {
    "short": Plan(),
    "cpu": Plan(
        architecture="wrn-10-2",
        epochs=10,
        beta=16.0,
        trend=(("wrn-10-2", 3, 16.0), ("wrn-10-4", 10, 32.0)),
        budget="quick",
        paper_delta=False,
    ),
    "paper": Plan(epochs=100, limit=1000, rows="0,1,2,3,4,5,6,7,8"),
}


def stages(plan: Plan, out: Path) -> list[Stage]:
    """Each training, its defense's step size and the paper's attacks on it; of one model more."""
    found: list[Stage] = []
    for name, architecture, epochs, delta, beta in _trainings(plan):
        found.append(_train(plan, out, name, architecture, epochs, delta))
        command = ["calibrate", str(_file(out, name)), *plan.data, "--beta", f"{beta:g}", "--device", plan.device]
        found.append(Stage(f"calibrate-{name}", command))
        found.append(_static(plan, out, name, 8, plan.paper_delta and name in CLEAN_UNDEFENDED))
        if name == plan.at_length:
            found += _at_length(plan, out, name)
    return found


def _at_length(plan: Plan, out: Path, name: str) -> list[Stage]:
    """What is asked of one model alone: the larger radius, adaptive attacks, and Polyak's steps."""
    report, common = out / "adaptive", [*plan.data, "--limit", str(plan.limit), "--device", plan.device]
    command = ["evaluate-adaptive", str(_file(out, name)), *common, "--eps", "8", "--rows", plan.rows]
    command += ["--budget", plan.budget, "--report", str(report)]
    solvers = ["bench", "solvers", "--model", str(_file(out, name)), *common, "--json", str(out / "solvers.json")]
    return [
        _static(plan, out, name, 16, False),
        Stage("adaptive", command, report / "settings.json"),
        Stage("solvers", solvers),
    ]


def figures(plan: Plan, out: Path) -> list[Figure]:
    """What the stages found, beside the paper's; and Figures 2 and 3, drawn."""
    _draw(plan, out)
    report = json.loads((out / "adaptive" / "report.json").read_text())
    found: list[Figure] = []
    for name, *_ in _trainings(plan):
        row = _table_1(out, name, 8)["rows"]["no defense"]["clean"]
        what = f"clean accuracy, {name}, no defense"
        found.append(Figure("Section 5.1", what, CLEAN_UNDEFENDED.get(name), 100 * row["value"], row["count"]))
    for (eps, loops), paper in PAPER.items():
        rows = _table_1(out, plan.at_length, eps)["rows"]
        one = _columns(f"eps {eps}, {loops} outer loops", rows[f"outer_loops = {loops}"], paper)
        if (eps, loops) == (8, 1):
            one[-1] = replace(one[-1], adaptive=100 * report["headline"])
        found += one
    rows = _table_1(out, "standard", 8)["rows"]
    found += _columns("eps 8, standard training, defended", rows["outer_loops = 1"], STANDARD_DEFENDED)
    for name in [name for name, *_ in _trainings(plan) if name not in ("standard", plan.at_length)]:
        found += _columns(f"eps 8, {name}, 1 outer loop", _table_1(out, name, 8)["rows"]["outer_loops = 1"], {})
    for power, printed in LAMBDAS.items():
        for sign, paper_value in zip("-+", printed, strict=True):
            name = f"CE {sign} 10^{power:g} max(L_F, delta)"
            line = next(line for line in report["lines"] if (line["row"], line["name"]) == (5, name))
            what = f"log10 lambda = {power:g}, {'negative' if sign == '-' else 'positive'}"
            found.append(Figure("Table 3", what, paper_value, 100 * line["mean"], line["count"]))
    return found


def _trainings(plan: Plan) -> list[tuple[str, str, int, str, float]]:
    """Name, architecture, epochs, delta of the loss, and beta of the defense, of each."""
    found = [(name, plan.architecture, plan.epochs, delta, plan.beta) for name, delta in _DELTAS.items()]
    for architecture, epochs, beta in plan.trend:
        found.append((f"{architecture}-{epochs}-epochs", architecture, epochs, _DELTAS["smoothed"], beta))
    return found


_DELTAS = {"smoothed": "0.02", "standard": "0"}


def _train(plan: Plan, out: Path, name: str, architecture: str, epochs: int, delta: str) -> Stage:
    folder = _file(out, name).parent
    command = ["train", "smoothing", *plan.data, "--architecture", architecture, "--epochs", str(epochs)]
    command += ["--delta", delta, *([] if plan.train_limit is None else ["--limit", str(plan.train_limit)])]
    command += ["--bf16", "--compile", "--device", plan.device, "--out", str(folder)]
    return Stage(f"train-{name}", command, folder / "state.safetensors")


def _static(plan: Plan, out: Path, name: str, eps: int, paper_delta: bool) -> Stage:
    command = [str(_file(out, name)), *plan.data, "--eps", str(eps), "--limit", str(plan.limit)]
    if paper_delta:
        command += ["--delta", str(PAPER_DELTA if name == "smoothed" else STANDARD_DELTA)]
    command += ["--device", plan.device, "--json", str(_static_file(out, name, eps))]
    return Stage(f"static-{name}-eps{eps}", command, module="reproduce.static")


def _columns(what: str, row: dict[str, Any], paper: dict[str, float]) -> list[Figure]:
    """Table 1's columns of a defense, the last of them AutoAttack."""
    names = ("clean", *COLUMNS, AUTOATTACK)
    return [
        Figure("Tables 1, 2", f"{what}: {name}", paper.get(name), 100 * row[name]["value"], row[name]["count"])
        for name in names
    ]


def _file(out: Path, name: str) -> Path:
    return out / name / "model.safetensors"


def _static_file(out: Path, name: str, eps: int) -> Path:
    return out / f"static-{name}-eps{eps}.json"


def _table_1(out: Path, name: str, eps: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_static_file(out, name, eps).read_text())
    return found


def _draw(plan: Plan, out: Path) -> None:
    """Figures 2 and 3: accuracy and L_F by epoch, with the smoothing loss and without."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(picture)
    left, right = picture.subplots(1, 2)
    for name, *_ in _trainings(plan):
        log = _log(_file(out, name).parent)
        epochs = range(1, len(log) + 1)
        left.plot(epochs, [100 * entry["accuracy"] for entry in log], marker=".", label=name)
        right.plot(epochs, [entry["feature_loss"] for entry in log], marker=".", label=name)
    left.set_ylabel("validation accuracy, %")
    right.set_ylabel("L_F")
    right.set_yscale("log")
    for (name, loss), style in zip(LAST_FEATURE_LOSS.items(), (":", "--"), strict=True):
        right.axhline(loss, linestyle=style, color="grey", label=f"the paper's last, {name}")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.legend(frameon=False, fontsize="small")
    with atomic_write(out / "figures-2-3.png") as temporary:
        picture.savefig(temporary, format="png", dpi=120)


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
