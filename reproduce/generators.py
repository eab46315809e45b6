"""Does W1 rise with the strength of an attack? Stage II of AFA in several ways, on one and the same stage I.

    python -m reproduce.generators STAGE1 --root FOLDER --out DIR [--epochs 3] [--train-limit 10000]

The paper's Fig. 6 has W1 rise. Each variant changes one thing: how wide the generator is, where it looks, how fast it
learns, or whether it is given the strengths. Of each: W1 by strength; how well W1 tells attacked images from clean ones
(AUC: 0.5 is chance); accuracy clean and attacked, and what the attack on W0 leaves. What is done is not done again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastdef.attacks import RATIOS, adaptive_pgd, frozen_eval, predicted, step_size
from fastdef.bench.machine import machine
from fastdef.checkpoint import load
from fastdef.data import Dataset, load_dataset, load_training
from fastdef.evaluation import Accuracy, Attack
from fastdef.io import write_json
from fastdef.nn import fusing_weights
from fastdef.training import TrainConfig, train_fusing

EPS = (0.0, 1.0, 2.0, 4.0, 8.0)
AT_ONCE = 128


@dataclass(frozen=True)
class Variant:
    """One way to train stage II.

    Attributes:
        hidden: width of the generator.
        placement: shared or layerwise.
        lr: learning rate.
        strengths: that the images of the training are attacked with, in 255ths.
        supervision: weight of the term that tells the generator the strengths.
    """

    hidden: int = 32
    placement: str = "shared"
    lr: float = 0.01
    strengths: tuple[float, ...] = EPS
    supervision: float = 0.0


VARIANTS = {
    "as published": Variant(),
    "four times as wide": Variant(hidden=128),
    "at every batch norm": Variant(placement="layerwise"),
    "ten times the learning rate": Variant(lr=0.1),
    "clean and 8/255 alone": Variant(strengths=(0.0, 8.0)),
    "given the strengths": Variant(supervision=1.0),
    "given them, at every batch norm": Variant(placement="layerwise", supervision=1.0),
}


def main(
    stage1: Annotated[Path, typer.Argument(help="model file of stage I")],
    root: Annotated[Path, typer.Option(help="folder of the data set")],
    out: Annotated[Path, typer.Option(help="folder of the runs")],
    data: Annotated[str, typer.Option(help="name of the data set")] = "cifar10",
    only: Annotated[list[str], typer.Option(help="names of variants, all if none is given")] = [],  # noqa: B006
    epochs: Annotated[int, typer.Option(min=1, help="of stage II")] = 3,
    attack_steps: Annotated[int, typer.Option(min=1, help="of the attack trained with")] = 3,
    train_limit: Annotated[int, typer.Option(min=10, help="training images")] = 10_000,
    limit: Annotated[int, typer.Option(min=1, help="test images")] = 256,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train each variant, measure it, and print the table."""
    fit, validation = (part.to(torch.device(device)) for part in load_training(data, root=root))
    fit, validation = fit.subset(train_limit - train_limit // 10), validation.subset(train_limit // 10)
    test = load_dataset(data, "test", root=root).subset(limit).to(torch.device(device))
    names = only or list(VARIANTS)
    config = TrainConfig(epochs=epochs, nesterov=False, schedule="onecycle", bf16=True, compile=True)
    found: dict[str, Any] = {}
    for name in names:
        folder = out / name.replace(",", "").replace(" ", "-").replace("/", "-")
        record = folder / "measured.json"
        if not record.is_file():
            model = trained(
                load(stage1, device=device).model, VARIANTS[name], fit, validation, config, folder, attack_steps
            )
            write_json(record, {"variant": vars(VARIANTS[name]), **measured(model, test)})
        found[name] = json.loads(record.read_text())
    settings = {
        "data": f"{test.name} {test.split}",
        "images": len(test),
        "epochs": epochs,
        "attack_steps": attack_steps,
    }
    write_json(out / "generators.json", {"machine": machine(torch.device(device)), **settings, "variants": found})
    show(found)


def trained(
    model: nn.Module,
    variant: Variant,
    fit: Dataset,
    validation: Dataset,
    config: TrainConfig,
    folder: Path,
    attack_steps: int,
) -> nn.Module:
    """The model of stage I after stage II, in place."""
    train_fusing(
        model,
        fit,
        validation,
        TrainConfig(**{**vars(config), "lr": variant.lr}),
        folder,
        strengths=[eps / 255 for eps in variant.strengths],
        attack_steps=attack_steps,
        supervision=variant.supervision,
        placement=variant.placement,
        hidden=variant.hidden,
        resume=(folder / "state.safetensors").is_file(),
    )
    return model


def measured(model: nn.Module, test: Dataset) -> dict[str, Any]:
    """W1 and accuracy by strength, the AUC of W1, and the accuracy under the attack on W0."""
    weights: dict[float, Tensor] = {}
    accuracies: dict[float, Accuracy] = {}
    with frozen_eval(model):
        for eps in EPS:
            w1, right = zip(*(_batch(model, test, start, eps) for start in range(0, len(test), AT_ONCE)), strict=True)
            weights[eps], whole = torch.cat(w1), torch.cat(right)
            accuracies[eps] = Accuracy(int(whole.sum()), len(whole))
        # of the largest strength, which came last
        on_w0 = whole & torch.cat([_stands_on_w0(model, test, start) for start in range(0, len(test), AT_ONCE)])
    clean, attacked = weights[0.0], weights[max(EPS)]
    return {
        "w1": {f"{eps:g}": float(value.mean()) for eps, value in weights.items()},
        "auc": float((attacked[:, None] > clean).float().mean() + (attacked[:, None] == clean).float().mean() / 2),
        "accuracy": {f"{eps:g}": value.to_json() for eps, value in accuracies.items()},
        "attack_on_w0": Accuracy(int(on_w0.sum()), len(on_w0)).to_json(),
    }


def _batch(model: nn.Module, test: Dataset, start: int, eps: float) -> tuple[Tensor, Tensor]:
    """(n,) mean W1, and which images are answered right, under PGD-20 of a strength on the whole model."""
    images, labels = test.floats(start, start + AT_ONCE), test.labels[start : start + AT_ONCE]
    if eps:
        images = Attack(eps=eps / 255).run(model, images, labels, batch=start).images
    with torch.no_grad():
        logits, w0 = fusing_weights(model, images)
    return (1 - w0).mean(1), predicted(logits) == labels


def _stands_on_w0(model: nn.Module, test: Dataset, start: int) -> Tensor:
    """(n,) which images stand all seven attacks on the answer and W0 at once, at the largest strength."""
    images, labels = test.floats(start, start + AT_ONCE), test.labels[start : start + AT_ONCE]
    eps, stands = max(EPS) / 255, torch.ones_like(labels, dtype=torch.bool)
    for ratio in RATIOS:
        generator = torch.Generator(images.device).manual_seed(start)
        step = step_size(eps, 20)
        x = adaptive_pgd(model, images, labels, eps=eps, step=step, steps=20, ratio=ratio, generator=generator)
        with torch.no_grad():
            stands = stands & (predicted(model(x)) == labels)
    return stands


def show(found: Mapping[str, Any]) -> None:
    """A line for each variant, accuracies in %."""
    table = Table("stage II", *(f"W1 at {eps:g}" for eps in EPS), "AUC", "clean", "PGD at 8", "attack on W0")
    for name, one in found.items():
        accuracies = (one["accuracy"]["0"], one["accuracy"]["8"], one["attack_on_w0"])
        weights = (f"{one['w1'][f'{eps:g}']:.3f}" for eps in EPS)
        table.add_row(name, *weights, f"{one['auc']:.2f}", *(f"{100 * value['value']:.1f}" for value in accuracies))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
