"""Table 1's columns: AutoAttack's parts on the classifier without its defense, and what defenses leave of them.

    python -m reproduce.static MODEL --data cifar10 --root FOLDER --json FILE [--eps 16] [--loops 1 --loops 10]

Each part attacks every image that the classifier answers right; where it finds nothing, the image stays as it is. The
last column is the paper's way to read "AutoAttack" of a random defense: an image counts if it is answered right clean
and under every part, each with noise of its own. L_F is told beside: what noise and attack add to it, and what the
defense takes away.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastdef.attacks import frozen_eval, predicted
from fastdef.bench.machine import machine
from fastdef.checkpoint import Checkpoint, load_for
from fastdef.data import Dataset, load_dataset
from fastdef.defense import ActiveDefense, Polyak
from fastdef.evaluation import Accuracy
from fastdef.evaluation.adaptive import autoattack
from fastdef.evaluation.adaptive.budget import AutoAttackEffort
from fastdef.io import write_json
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss

COLUMNS = {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t", "FAB-T": "fab-t", "Square": "square"}
AUTOATTACK = "AutoAttack"
AT_ONCE = 256


def main(
    model: Annotated[Path, typer.Argument(help="a model file with an Active Defense")],
    root: Annotated[Path, typer.Option(help="folder of the data set")],
    data: Annotated[str, typer.Option(help="name of the data set")] = "cifar10",
    limit: Annotated[int, typer.Option(min=1, help="test images")] = 128,
    eps: Annotated[float, typer.Option(help="radius, in 255ths")] = 8.0,
    loops: Annotated[list[int], typer.Option(help="outer loops to defend with, one or several")] = [1, 10],  # noqa: B006
    delta: Annotated[list[float], typer.Option(help="other thresholds to defend with")] = [],  # noqa: B006
    beta: Annotated[list[float], typer.Option(help="other step sizes to defend with")] = [],  # noqa: B006
    iterations: Annotated[int, typer.Option(min=1, help="of AutoAttack's gradient parts")] = 100,
    targets: Annotated[int, typer.Option(min=1, help="classes that its targeted parts aim at")] = 9,
    queries: Annotated[int, typer.Option(min=1, help="of Square")] = 5000,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Print Table 1 for a model and its defenses."""
    dataset = load_dataset(data, "test", root=root).subset(limit).to(torch.device(device))
    checkpoint = load_for(model, dataset, device=device)
    effort = AutoAttackEffort(iterations, targets, queries)
    points = {"clean": dataset.floats(0, len(dataset)), **crafted(checkpoint.model, dataset, eps / 255, effort)}
    chosen = defenses(checkpoint, loops=loops, delta=delta, beta=beta)
    found = {
        "machine": machine(torch.device(device)),
        "model": f"{model.parent.name}/{model.name}",  # not where it lay
        "data": f"{dataset.name} {dataset.split}",
        "images": len(dataset),
        "eps": eps,
        "effort": asdict(effort),
        "defenses": {name: defense.config() for name, defense in chosen.items()},
        "rows": {"no defense": undefended(checkpoint.model, points, dataset.labels)},
        "feature_loss": feature_losses(next(iter(chosen.values())), points),
    }
    for name, defense in chosen.items():
        found["rows"][name] = defended(defense, points, dataset.labels)
    show(found)
    if json_file is not None:
        write_json(json_file, found)


def crafted(model: nn.Module, dataset: Dataset, eps: float, effort: AutoAttackEffort) -> dict[str, Tensor]:
    """(N, C, H, W) points of each part, by its column."""
    images, labels = dataset.floats(0, len(dataset)), dataset.labels
    with frozen_eval(model):
        return {
            column: autoattack.standard(model, images, labels, eps=eps, effort=effort, seed=0, parts=[part])
            for column, part in COLUMNS.items()
        }


def defenses(
    checkpoint: Checkpoint, *, loops: Sequence[int], delta: Sequence[float], beta: Sequence[float]
) -> dict[str, ActiveDefense]:
    """The file's own with each number of outer loops; then with other thresholds, step sizes, and Polyak's steps."""
    options: dict[str, dict[str, Any]] = {f"outer_loops = {value}": {"outer_loops": value} for value in loops}
    options |= {f"delta = {value:g}": {"delta": value} for value in delta}
    options |= {f"beta = {value:g}": {"beta": value} for value in beta}
    options["Polyak"] = {"solver": Polyak()}
    return {name: ActiveDefense.from_checkpoint(checkpoint, **given) for name, given in options.items()}


@torch.no_grad()
def undefended(model: nn.Module, points: dict[str, Tensor], labels: Tensor) -> dict[str, Any]:
    """Accuracy of the classifier alone in every column."""
    with frozen_eval(model):
        right = {
            column: torch.cat([predicted(model(part)) for part in x.split(AT_ONCE)]) == labels
            for column, x in points.items()
        }
    return columns(right)


def defended(defense: ActiveDefense, points: dict[str, Tensor], labels: Tensor) -> dict[str, Any]:
    """Accuracy of a defense in every column, noise of its own in each, and its steps on clean images."""
    right, steps = {}, {}
    for number, (column, x) in enumerate(points.items()):
        result = defense.defend(x, ids=number * len(x) + torch.arange(len(x)))
        right[column] = predicted(result.logits).to(labels.device) == labels
        steps[column] = {
            "median": int(result.steps.median()),
            "mean": float(result.steps.double().mean()),
            "most": int(result.steps.max()),
            "converged": float(result.converged.float().mean()),
        }
    return {**columns(right), "steps": steps}


def columns(right: dict[str, Tensor]) -> dict[str, Any]:
    """Accuracy by column, the last of images that are right in all of them."""
    whole = {**right, AUTOATTACK: torch.stack(list(right.values())).all(0)}
    return {column: Accuracy(int(which.sum()), len(which)).to_json() for column, which in whole.items()}


def feature_losses(defense: ActiveDefense, points: dict[str, Tensor]) -> dict[str, float]:
    """Mean L_F of clean and attacked images, with noise on them, and after the defense."""
    found: dict[str, float] = {}
    for column in ("clean", "APGD-CE"):
        x = points[column]
        kinds = {column: x, f"{column}, noised": defense.noised(x), f"{column}, defended": defense.smooth(x).images}
        found |= {name: _feature_loss(defense, images) for name, images in kinds.items()}
    return found


@torch.no_grad()
def _feature_loss(defense: ActiveDefense, images: Tensor) -> float:
    features = prefix(defense.model, defense.layer)
    return float(torch.cat([smoothing_loss(features(part)) for part in images.split(AT_ONCE)]).double().mean())


def show(found: dict[str, Any]) -> None:
    """As the paper's Table 1, in %."""
    table = Table(title=f"{found['data']}, {found['images']} images, eps {found['eps']:g}/255, static attacks")
    names = ["clean", *COLUMNS, AUTOATTACK]
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left")
    for row, accuracies in found["rows"].items():
        table.add_row(row, *(f"{100 * accuracies[name]['value']:.1f}" for name in names))
    console = Console()
    console.print(table)
    console.print("mean L_F: " + ", ".join(f"{name} {value:.4f}" for name, value in found["feature_loss"].items()))


if __name__ == "__main__":
    typer.run(main)
