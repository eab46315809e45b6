"""Both defenses in one model, which neither paper has: does Active Defense add anything to a network of AFA?

AFA alone, AFA with the smoothing loss in stage I but without the defense, and with it, each under adaptive attacks.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stages import Stage
from reproduce.afa import train
from reproduce.tables import Figure

TITLE = "AFA and Active Defense in one model"


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        architecture: of both networks.
        epochs: of stage I.
        fusing_epochs: of stage II.
        branches: K.
        attack_steps: of the attack trained with; the recipe's own if None.
        beta: step size of the defense; see :class:`reproduce.smoothing.Plan`.
        limit: test images.
        budget: of the adaptive evaluations.
        train_limit: training images, all if None.
        data: options that name the data.
        device: where.
    """

    architecture: str = "wrn-16-8"
    epochs: int = 5
    fusing_epochs: int = 2
    branches: int = 5
    attack_steps: int | None = None
    beta: float = 64.0
    limit: int = 128
    budget: str = "standard"
    train_limit: int | None = None
    data: tuple[str, ...] = ()
    device: str = "cpu"


PRESETS = {
    "short": Plan(),
    "cpu": Plan(
        architecture="wrn-10-2",
        epochs=8,
        fusing_epochs=3,
        branches=3,
        attack_steps=3,
        beta=16.0,
        budget="quick",
        train_limit=10_000,
    ),
    "paper": Plan(epochs=100, fusing_epochs=20, limit=1000),
}
_MODELS = {  # report: its name, the model, options of the evaluation
    "afa": ("AFA alone", "afa", ("--rows", "0,1,3")),
    "undefended": ("AFA with the smoothing loss", "smoothed", ("--rows", "0,1,3", "--undefended")),
    "both": ("AFA with the smoothing loss and Active Defense", "smoothed", ("--rows", "0,1,3,8")),
}


def stages(plan: Plan, out: Path) -> list[Stage]:
    """Two trainings, three evaluations."""
    smoothed = out / "smoothed" / "model.safetensors"
    command = ["calibrate", str(smoothed), *plan.data, "--beta", f"{plan.beta:g}", "--device", plan.device]
    found = [train(plan, out, "afa", "pgd-at", plan.branches)]
    found.append(train(plan, out, "smoothed", "pgd-at", plan.branches, options=["--delta", "0.02"]))
    found.append(Stage("calibrate", command))
    for name, (_, model, options) in _MODELS.items():
        report = out / f"adaptive-{name}"
        command = ["evaluate-adaptive", str(out / model / "model.safetensors"), *plan.data, *options]
        command += ["--budget", plan.budget, "--limit", str(plan.limit), "--device", plan.device]
        found.append(Stage(f"adaptive-{name}", [*command, "--report", str(report)], report / "settings.json"))
    return found


def figures(plan: Plan, out: Path) -> list[Figure]:
    """Clean accuracy of each, and what the strongest attack leaves."""
    found = []
    for name, (what, *_) in _MODELS.items():
        report = json.loads((out / f"adaptive-{name}" / "report.json").read_text())
        clean = next(line for line in report["lines"] if (line["row"], line["name"]) == (0, "clean"))
        found.append(Figure("not there", f"{what}: clean", None, 100 * clean["mean"], clean["count"]))
        attack = next(line for line in report["lines"] if f"{line['row']} {line['name']}" == report["headline_of"])
        low, high = (100 * end for end in attack["interval"])
        what = f"{what}: {report['headline_of']}, 95 % interval {low:.0f} to {high:.0f}"
        headline = 100 * report["headline"]
        found.append(Figure("not there", what, None, headline, attack["count"], adaptive=headline))
    return found
