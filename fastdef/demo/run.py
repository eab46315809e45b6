"""What the demo measures, on real images, in one run."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdef
from fastdef.attacks import pgd, predicted
from fastdef.bench.machine import interleaved, machine
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense, BatchResult, lockstep, whole_network
from fastdef.evaluation import Strengths, evaluate_strengths
from fastdef.evaluation.adaptive import BUDGETS, AdaptiveResults, Target, evaluate_adaptive

ASSETS = Path(fastdef.__file__).parent / "assets"
EPS = 8 / 255
STRENGTHS_ON = 256  # images that the AFA model is attacked on
BUDGET = replace(  # adaptive attacks, for a minute
    BUDGETS["smoke"], images=48, expensive_share=0.25, iterations=20, patience=5, depths=(10,), averaged_steps=10
)
TIMED = 64  # images that both loops smooth for the clock: one full batch of the naive loop
REPEATS = 3


@dataclass(frozen=True)
class Demo:
    """The results of the demo.

    Attributes:
        defense: the defended classifier.
        images: (N, 1, 28, 28) test images.
        attacked: the same under PGD-20, crafted on the undefended classifier.
        labels: (N,) their classes.
        classes: names of the classes.
        undefended: logits of the images and of the attacked images.
        defended: what the defense made of both.
        adaptive: what adaptive attacks leave of some of the images: row 3 of the adaptive evaluation.
        seconds: the naive loop on ``TIMED`` attacked images, ours on the same, and the undefended classifier; medians.
        afa: the shipped AFA model under attacks of every strength.
    """

    defense: ActiveDefense
    images: Tensor
    attacked: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    undefended: tuple[Tensor, Tensor]
    defended: tuple[BatchResult, BatchResult]
    adaptive: AdaptiveResults
    seconds: tuple[float, float, float]
    afa: Strengths

    def accuracy(self, logits: Tensor) -> float:
        """Share of right answers."""
        return float((predicted(logits) == self.labels).float().mean())

    def to_json(self) -> dict[str, Any]:
        """The figures, by name; accuracies from 0 to 1."""
        clean, attacked = self.defended
        naive, ours, classifier = self.seconds
        steps = torch.cat([clean.steps, attacked.steps])
        converged = torch.cat([clean.converged, attacked.converged])
        return {
            "clean": self.accuracy(self.undefended[0]),
            "attacked": self.accuracy(self.undefended[1]),
            "defended_clean": self.accuracy(clean.logits),
            "defended_attacked": self.accuracy(attacked.logits),
            "adaptive": self.adaptive.to_json(),
            "images": len(self.images),
            "images_per_second_naive": TIMED / naive,
            "images_per_second": TIMED / ours,
            "images_per_second_undefended": TIMED / classifier,
            "times_undefended": (ours + classifier) / classifier,
            "steps_median": int(steps.median()),
            "steps_max": int(steps.max()),
            "converged": float(converged.float().mean()),
            "attack": "PGD-20 on the undefended classifier, eps 8/255",
            "defense": self.defense.config(),
            "afa": {**self.afa.to_json(), "shifts": [shift.w1 for shift in self.afa.shifts]},
            "machine": machine(self.images.device),
        }


def run(*, count: int = 512, model: Path = ASSETS / "smoothing.safetensors", step: Callable[[str], object]) -> Demo:
    """Attack, defend and time the shipped classifier, and attack the shipped AFA model.

    Args:
        count: test images used, of the 512 that are shipped.
        model: a model file with an Active Defense, for Fashion-MNIST.
        step: called with what is about to be done.

    Raises:
        ValueError: if the model file is none, or has no Active Defense.
    """
    defense = ActiveDefense.from_checkpoint(load(model))
    dataset = load_dataset("fashion-mnist", "test", root=ASSETS).take(count)
    images, labels = dataset.floats(0, len(dataset)), dataset.labels
    step("attacking: PGD-20, eps 8/255")
    generator = torch.Generator().manual_seed(0)
    attacked = pgd(defense.model, images, labels, eps=EPS, step=2 / 255, steps=20, generator=generator)
    with torch.no_grad():
        undefended = defense.model(images), defense.model(attacked)
    step("defending: clean images")
    clean = defense.defend(images)
    step("defending: attacked images")
    recovered = defense.defend(attacked)
    step(f"defending: against adaptive attacks, {BUDGET.images} images")
    adaptive = evaluate_adaptive(Target.defended(defense), dataset, budget=BUDGET, rows=[3])
    step("timing: the naive loop and ours on the same images")
    seconds = _time(defense, attacked[:TIMED])
    step("AFA: attacks of every strength on the other classifier")
    afa = evaluate_strengths(load(ASSETS / "afa.safetensors").model, dataset.take(STRENGTHS_ON), parts=False)
    return Demo(
        defense=defense,
        images=images,
        attacked=attacked,
        labels=labels,
        classes=dataset.classes,
        undefended=undefended,
        defended=(clean, recovered),
        adaptive=adaptive,
        seconds=seconds,
        afa=afa,
    )


def _time(defense: ActiveDefense, images: Tensor) -> tuple[float, float, float]:
    """Median seconds of the naive loop, of ours and of the classifier, turn by turn, after one turn to warm up."""
    noise = torch.empty_like(images).uniform_(-defense.sigma, defense.sigma)

    def naive() -> None:
        with whole_network(defense.model, defense.layer) as losses:
            lockstep(losses, images, noise, beta=defense.beta, delta=defense.delta, max_steps=defense.max_steps)
        defense.model.zero_grad()

    def ours() -> None:
        defense.smooth(images, noise=noise)

    @torch.no_grad()
    def classifier() -> None:
        defense.model(images)

    contenders = {"naive": naive, "ours": ours, "classifier": classifier}
    taken = interleaved(contenders, images.device, turns=REPEATS)
    return statistics.median(taken["naive"]), statistics.median(taken["ours"]), statistics.median(taken["classifier"])
