"""What one model is worth behind each defense, and what noise and attacks do to its L_F.

python -m reproduce.sweeps.measure MODEL --data NAME --root FOLDER --out FILE
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from fastdef.attacks import apgd, frozen_eval, search, untargeted
from fastdef.bench.machine import machine
from fastdef.checkpoint import load
from fastdef.data import Dataset, load_dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Attack
from fastdef.evaluation.adaptive import BUDGETS, Target
from fastdef.evaluation.adaptive.attack_case import Batch
from fastdef.evaluation.adaptive.bpda import bpda
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.score import Score, by_label
from fastdef.io import write_json
from fastdef.losses import smoothness
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss
from reproduce.sweeps.defenses import Setting, blur_as_far, calibrated, noise_alone, rms

EPS = 8 / 255
SMOKE = BUDGETS["smoke"]
DEPTH = 10  # steps of the loop that an attacker who knows it goes through
VARIANTS = {
    "as above": Setting(),  # on as few images as the others
    "sigma 0.0375": Setting(sigma=0.0375),
    "sigma 0.15": Setting(sigma=0.15),
    "ratio 0.98": Setting(ratio=0.98),
    "ratio 0.7": Setting(ratio=0.7),
    "step 0.002": Setting(step=0.002),
    "step 0.032": Setting(step=0.032),
}
_HELD_OUT = 256
_AT_ONCE = 128
_MOVED = 64  # images by which it is told how far a defense moves them


def main(
    model: Path,
    data: Annotated[str, typer.Option()],
    root: Annotated[Path, typer.Option()],
    out: Annotated[Path, typer.Option(help="the JSON file")],
    limit: Annotated[int, typer.Option(help="test images")] = 256,
    aware: Annotated[int, typer.Option(help="of them, attacked through each defense")] = 48,
    variants: Annotated[bool, typer.Option(help="other sigmas, ratios and steps too")] = False,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Measure a model of ``fastdef train smoothing``."""
    checkpoint = load(model, device=device)
    test = load_dataset(data, "test", root=root).subset(limit).to(device)
    held_out = load_dataset(data, "validation", root=root).subset(_HELD_OUT).floats(0, _HELD_OUT).to(device)
    layer = str((checkpoint.defense or {})["layer"])
    settings = {"defended": Setting(), **(VARIANTS if variants else {})}
    found = measure(checkpoint.model.eval(), layer, test, held_out, settings, aware=aware)
    found["machine"] = machine(torch.device(device))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found)


def measure(
    model: nn.Module, layer: str, test: Dataset, held_out: Tensor, settings: dict[str, Setting], *, aware: int
) -> dict[str, Any]:
    """Undefended, noise alone, blur as far as the defense moves an image, the defense; and its other settings, in part.

    Args:
        model: in eval mode.
        layer: whose L_F the defense descends.
        test: images to attack.
        held_out: (N, C, H, W) clean images to calibrate by.
        settings: of the defense; the first is the one that the controls belong to.
        aware: test images that are attacked through each defense.
    """
    defenses = {name: calibrated(model, layer, held_out, setting, compile=True) for name, setting in settings.items()}
    name, first = next(iter(defenses.items()))
    sample = held_out[:_MOVED]
    distance = moved(first, sample)
    blur = blur_as_far(sample, distance)
    controls = {
        "undefended": (Target.plain(model), 0.0),
        "noise": (noise_alone(first), rms(first.noised(sample) - sample)),
        "blur": (Target.plain(nn.Sequential(blur, model).eval()), rms(blur(sample) - sample)),
        name: (Target.defended(first), distance),
    }
    sets = images_of(model, test)
    rows: dict[str, dict[str, Any]] = {}
    for row, (target, far) in controls.items():
        rows[row] = {"pixel_rms": far, **{kind: _score(target, images, test.labels) for kind, images in sets.items()}}
        knowing = through(target, test.take(aware))
        noise_samples = SMOKE.noise_samples if target.random else 1
        rows[row]["aware"] = _score(target, knowing, test.labels[:aware], noise_samples)
    half = len(test) // 2
    for row, defense in list(defenses.items())[1:]:
        target, far = Target.defended(defense), moved(defense, sample)
        some = {kind: _score(target, sets[kind][:half], test.labels[:half]) for kind in ("clean", "PGD-20")}
        rows[row] = {"pixel_rms": far, **some}
    return {
        "layer": layer,
        "data": f"{test.name} {test.split}",
        "settings": {name: asdict(setting) for name, setting in settings.items()},
        "defenses": {name: defense.config() for name, defense in defenses.items()},
        "blur_sigma": blur.sigma,
        "features": {
            name: features(model, name, sets, first)
            for name in dict.fromkeys([layer, layer.removesuffix(".normalized")])
        },
        "rows": rows,
    }


def images_of(model: nn.Module, test: Dataset) -> dict[str, Tensor]:
    """The clean images, and those attacked on the model alone: by an attacker who does not know of any defense."""
    found: dict[str, list[Tensor]] = {"clean": [], "PGD-20": [], "APGD-CE": []}
    for number, start in enumerate(range(0, len(test), _AT_ONCE)):
        images, labels = test.floats(start, start + _AT_ONCE), test.labels[start : start + _AT_ONCE]
        generator = torch.Generator(images.device).manual_seed(number)
        found["clean"].append(images)
        found["PGD-20"].append(Attack(eps=EPS)(model, images, labels, batch=number))
        found["APGD-CE"].append(apgd(model, images, labels, eps=EPS, iterations=20, generator=generator))
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def through(target: Target, test: Dataset) -> Tensor:
    """Attacked by one who knows: Auto-PGD on cross-entropy, BPDA, the mean gradient of draws of the noise."""
    images = test.floats(0, len(test))
    draws = NoiseSeeds(torch.arange(len(test)), SeedStream.ATTACK)
    ask = bpda(target, untargeted(test.labels), draws, eot=SMOKE.eot, steps=DEPTH)
    generator = torch.Generator(images.device).manual_seed(0)
    patience = SMOKE.patience if target.random else 0
    with frozen_eval(target.classifier):
        return search([ask], images, eps=EPS, iterations=SMOKE.iterations, patience=patience, generator=generator)


def moved(defense: ActiveDefense, images: Tensor) -> float:
    """How far, rms in pixel units."""
    return rms(defense.smooth(images).images - images)


@torch.no_grad()
def features(model: nn.Module, layer: str, sets: dict[str, Tensor], defense: ActiveDefense) -> dict[str, Any]:
    """L_F, its spread over images, and L_F / std F, on clean, noised, attacked and smoothed images.

    Smoothing raises what noise adds to L_F, in units of the spread between clean images; shrinking does not.
    """
    kinds = {"clean": sets["clean"], "attacked": sets["PGD-20"]}
    kinds |= {f"{name}, noised": defense.noised(images) for name, images in kinds.items()}
    kinds["clean, smoothed"] = defense.smooth(sets["clean"]).images
    run = prefix(model, layer)
    found = {}
    for name, images in kinds.items():
        maps = [run(part) for part in images.split(_AT_ONCE)]
        loss = torch.cat([smoothing_loss(part) for part in maps])
        shape = torch.cat([smoothness(part) for part in maps])
        found[name] = {"loss": float(loss.mean()), "spread": float(loss.std()), "smoothness": float(shape.mean())}
    return found


def _score(target: Target, images: Tensor, labels: Tensor, noise_samples: int = 1) -> dict[str, Any]:
    batch = Batch(images, labels, torch.arange(len(labels)), seed=0, kept=lambda key: images)
    return Score.of(by_label(target)(batch, images, noise_samples, SeedStream.EVALUATION)).to_json()


if __name__ == "__main__":
    typer.run(main)
