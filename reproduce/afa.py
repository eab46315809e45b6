"""Paper 000 (AFA): Tables 1, 3 and 4, and Figures 3 and 6, for the baselines and AFA on each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stages import Stage
from reproduce.tables import Figure

EPS = (0, 1, 2, 4, 8)
# CIFAR-10, Table 1: accuracy at each eps, and the mean.
PAPER = {
    "pgd-at": (86.9, 81.5, 78.5, 68.8, 46.2, 72.4),
    "pgd-at-afa": (95.8, 87.0, 83.9, 72.6, 50.0, 77.9),
    "trades": (83.2, 80.5, 77.6, 71.3, 53.8, 73.3),
    "trades-afa": (95.4, 86.8, 82.7, 72.1, 52.6, 77.9),
    "iat": (92.9, 88.3, 84.4, 73.5, 46.2, 77.0),
    "iat-afa": (96.1, 86.2, 81.7, 73.7, 46.2, 76.7),
    "mart": (83.6, 81.0, 78.2, 72.3, 55.3, 74.1),
    "mart-afa": (95.9, 84.3, 84.2, 73.5, 56.1, 78.8),
}
STRONGEST = {  # Table 3, left: FGSM, C&W, and the adaptive attack at eps 8
    "standard": (24.2, 0.0, None),
    "pgd-at": (56.1, 45.3, None),
    "pgd-at-afa": (81.1, 48.3, 48.2),
    "trades": (64.6, 52.5, None),
    "trades-afa": (80.3, 51.0, 52.2),
    "iat": (65.7, 43.4, None),
    "iat-afa": (80.6, 43.5, 46.1),
    "mart": (64.3, 53.4, None),
    "mart-afa": (81.3, 53.6, 55.6),
}
BLACK_BOX = {  # Table 3, right: images attacked on a ResNet-50, at eps 8
    "pgd-at": 66.8,
    "pgd-at-afa": 67.9,
    "trades": 65.3,
    "trades-afa": 65.9,
    "iat": 71.8,
    "iat-afa": 74.0,
    "mart": 66.0,
    "mart-afa": 67.7,
}
BRANCHES = {2: 76.2, 3: 77.3, 5: 77.9, 9: 78.1}  # Table 4: mean over eps by K


TITLE = "AFA"


@dataclass(frozen=True)
class Plan:
    """What is run: data, architectures, epochs of both stages, methods, K of AFA and others beside it, and images.

    ``attack_steps`` are those of the training; the recipe's own if None.
    """

    architecture: str = "wrn-16-8"
    surrogate: str = "resnet-50-16"
    epochs: int = 5
    fusing_epochs: int = 2
    methods: tuple[str, ...] = ("pgd-at",)
    branches: int = 5
    other_branches: tuple[int, ...] = ()
    attack_steps: int | None = None
    limit: int = 512
    train_limit: int | None = None
    data: tuple[str, ...] = ()
    device: str = "cpu"


PRESETS = {
    "short": Plan(),
    "cpu": Plan(
        architecture="wrn-10-2",
        surrogate="resnet-18-16",
        epochs=8,
        fusing_epochs=3,
        methods=("pgd-at", "trades"),
        branches=3,
        other_branches=(2,),
        attack_steps=3,
        train_limit=10_000,
    ),
    "paper": Plan(
        surrogate="resnet-50",
        epochs=100,
        fusing_epochs=20,
        methods=("pgd-at", "trades", "iat", "mart"),
        other_branches=(2, 3, 9),
        limit=10_000,
    ),
}


def stages(plan: Plan, out: Path) -> list[Stage]:
    """Every training, then one comparison of all, then the images of the surrogate."""
    found = [train(plan, out, "surrogate", "standard", 1, architecture=plan.surrogate)]
    found.append(train(plan, out, "standard", "standard", 1))
    for method in plan.methods:
        found += [train(plan, out, method, method, 1), train(plan, out, f"{method}-afa", method, plan.branches)]
    found += [train(plan, out, f"pgd-at-afa-{k}", "pgd-at", k) for k in plan.other_branches]
    models = [str(out / name / "model.safetensors") for name in _names(plan)]
    common = [*plan.data, "--limit", str(plan.limit), "--device", plan.device]
    command = ["evaluate-afa", *models, *common, "--json", str(out / "strengths.json")]
    found.append(Stage("strengths", [*command, "--figure", str(out / "figures-3-6.png")]))
    for name in _names(plan):
        if name in BLACK_BOX:
            command = ["evaluate-adaptive", str(out / name / "model.safetensors"), *common, "--rows", "0,2"]
            command += ["--budget", "quick"]  # smoke has 16 images
            command += ["--surrogate", str(out / "surrogate" / "model.safetensors"), "--report", str(out / "bb" / name)]
            found.append(Stage(f"black-box-{name}", command, out / "bb" / name / "settings.json"))
    return found


def figures(plan: Plan, out: Path) -> list[Figure]:
    """What the stages found, beside the paper's."""
    models = json.loads((out / "strengths.json").read_text())["models"]
    found: list[Figure] = []
    for name in _names(plan):
        row = next(iter(models[name]["rows"].values()))
        count = row["by_eps"][0]["count"]
        if name in PAPER:
            ours = [100 * one["value"] for one in row["by_eps"]] + [100 * row["mean"]]
            places = [f"eps {eps}" for eps in EPS] + ["mean"]
            pairs = zip(places, PAPER[name], ours, strict=True)
            said = f"{name}, K = {plan.branches}" if name.endswith("-afa") else name  # the paper's K is 5
            found += [Figure("Table 1", f"{said}, {place}", paper, value, count) for place, paper, value in pairs]
        found += _strongest(name, models[name]["strongest"])
    for k, name in _by_branches(plan).items():
        row = next(iter(models[name]["rows"].values()))
        found.append(Figure("Table 4", f"K = {k}, mean", BRANCHES[k], 100 * row["mean"], row["by_eps"][0]["count"]))
    for name in _names(plan):
        if name in BLACK_BOX:
            report = json.loads((out / "bb" / name / "report.json").read_text())
            line = next(line for line in report["lines"] if line["name"] == "PGD on the surrogate")
            what = f"{name}, images of the surrogate, eps 8"
            found.append(Figure("Table 3", what, BLACK_BOX[name], 100 * line["mean"], line["count"]))
    return found


def _strongest(name: str, attacks: dict[str, Any]) -> list[Figure]:
    if name not in STRONGEST:
        return []
    fgsm, margin, adaptive = STRONGEST[name]
    papers = {"FGSM": fgsm, "C&W": margin, "adaptive": adaptive}
    found = []
    for attack, accuracy in attacks.items():
        kind = next((kind for kind in papers if attack.startswith(kind)), None)
        if kind is not None:
            value, count = 100 * accuracy["value"], accuracy["count"]
            found.append(Figure("Table 3", f"{name}, {attack}, eps 8", papers[kind], value, count))
    return found


def _names(plan: Plan) -> list[str]:
    pairs = [name for method in plan.methods for name in (method, f"{method}-afa")]
    return ["standard", *pairs, *(f"pgd-at-afa-{k}" for k in plan.other_branches)]


def _by_branches(plan: Plan) -> dict[int, str]:
    """Models of Table 4 by K."""
    return {plan.branches: "pgd-at-afa", **{k: f"pgd-at-afa-{k}" for k in plan.other_branches}}


def train(
    plan: Any,
    out: Path,
    name: str,
    method: str,
    branches: int,
    *,
    architecture: str | None = None,
    options: Sequence[str] = (),
) -> Stage:
    """A training of both stages, or of one branch alone, as any plan with these lengths has it."""
    folder = out / name
    command = ["train", "afa", *plan.data, "--architecture", architecture or plan.architecture, "--method", method]
    command += ["--branches", str(branches), "--epochs", str(plan.epochs), "--fusing-epochs", str(plan.fusing_epochs)]
    command += ["--schedule", "onecycle", "--bf16", "--compile", "--device", plan.device, "--out", str(folder)]
    command += [] if plan.train_limit is None else ["--limit", str(plan.train_limit)]
    command += [] if plan.attack_steps is None or method == "standard" else ["--attack-steps", str(plan.attack_steps)]
    command += options
    first = folder if branches == 1 else folder / "stage1"
    return Stage(f"train-{name}", command, first / "state.safetensors")
