"""Accuracy clean and attacked, undefended and defended, over a data set."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdef._check import check_positive
from fastdef.attacks import margin, pgd
from fastdef.attacks._losses import cross_entropy
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation.accuracy import Accuracy

Classifier = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N, classes) logits


@dataclass(frozen=True)
class Attack:
    """PGD on the undefended classifier.

    Attributes:
        eps: radius, in pixel units.
        steps: number of steps; one is FGSM without a random start.
        step: step size; 2.5 * eps / steps, at most eps, if not given.
        loss: "cross_entropy", or "margin" (C&W).
        seed: of the random start.
    """

    eps: float = 8 / 255
    steps: int = 20
    step: float | None = None
    loss: str = "cross_entropy"
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.eps, name="eps", where="Attack")
        if self.loss not in _LOSSES:
            raise ValueError(f"Attack needs a loss among {', '.join(_LOSSES)}, got {self.loss!r}")

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor, *, batch: int = 0) -> Tensor:
        """Adversarial images; ``batch`` numbers the batch, so that no two start alike."""
        return pgd(
            model,
            images,
            labels,
            eps=self.eps,
            step=min(self.eps, 2.5 * self.eps / self.steps) if self.step is None else self.step,
            steps=self.steps,
            random_start=self.steps > 1,
            loss=_LOSSES[self.loss],
            generator=torch.Generator(images.device).manual_seed(self.seed * 1_000_003 + batch),
        )


_LOSSES = {"cross_entropy": cross_entropy, "margin": margin}


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: what was classified, and by what.
        accuracy: right answers.
        seconds: time to classify an image, the attack not counted.
        steps: gradient steps of the defense for each image; empty without a defense.
        unconverged: images that reached ``max_steps`` or the deadline.
    """

    name: str
    accuracy: Accuracy
    seconds: float
    steps: list[int] = field(default_factory=list)
    unconverged: int = 0

    def to_json(self) -> dict[str, Any]:
        """The line, its steps as median and maximum."""
        line = {**self.accuracy.to_json(), "seconds_per_image": self.seconds}
        if self.steps:
            ordered = sorted(self.steps)
            line |= {"steps_median": ordered[len(ordered) // 2], "steps_max": ordered[-1]}
            line["unconverged"] = self.unconverged
        return line


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        rows: clean, attacked, and with a defense both again.
        attack: what attacked.
        data: name and split of the images.
        device: where it ran.
    """

    rows: list[Row]
    attack: Attack
    data: str
    device: str

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "data": self.data,
            "attack": asdict(self.attack),
            "device": self.device,
            "torch": torch.__version__,
            "rows": {row.name: row.to_json() for row in self.rows},
        }


def evaluate(
    model: Classifier,
    dataset: Dataset,
    *,
    defense: ActiveDefense | None = None,
    attack: Attack | None = None,
    batch_size: int = 256,
    progress: Callable[[int], object] = lambda images: None,
) -> Evaluation:
    """Accuracy on clean and on attacked images, of the model and, where one is given, of its defense.

    The attack is crafted on the undefended model, so what the defended rows say is what the defense does to an attacker
    who does not know of it. That is the weakest attacker there is.

    Args:
        model: images to logits.
        dataset: on the device of the model.
        defense: of the same model.
        attack: PGD-20 at 8/255 if not given.
        batch_size: images at once.
        progress: called with the number of images of each batch that is through.

    Raises:
        ValueError: for an empty data set, or labels that the model has no class for.
    """
    attack = attack or Attack()
    if len(dataset) == 0:
        raise ValueError("evaluate needs at least one image, got an empty data set")
    _check_classes(model, dataset)
    rows: dict[str, Row] = {}
    for number, (images, labels, start) in enumerate(_batches(dataset, batch_size)):
        attacked = attack(model, images, labels, batch=number)
        for kind, given in (("clean", images), ("attacked", attacked)):
            _count(rows, kind, labels, *_plain(model, given))
            if defense is not None:
                ids = torch.arange(start, start + len(images))
                _count(rows, f"{kind}, defended", labels, *_defended(defense, given, ids))
        progress(len(images))
    order = ["clean", "attacked", "clean, defended", "attacked, defended"]
    return Evaluation(
        rows=[rows[name] for name in order if name in rows],
        attack=attack,
        data=f"{dataset.name} {dataset.split}",
        device=str(dataset.images.device),
    )


def _batches(dataset: Dataset, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    for start in range(0, len(dataset), size):
        stop = min(start + size, len(dataset))
        yield dataset.floats(start, stop), dataset.labels[start:stop], start


@torch.no_grad()
def _check_classes(model: Classifier, dataset: Dataset) -> None:
    classes = model(dataset.floats(0, 1)).shape[1]
    if int(dataset.labels.max()) >= classes:
        raise ValueError(
            f"evaluate needs labels that the model has: {classes} classes, got a label {int(dataset.labels.max())}"
        )


@torch.no_grad()
def _plain(model: Classifier, images: Tensor) -> tuple[Tensor, float, list[int], int]:
    begin = time.perf_counter()
    answers = model(images).argmax(1)
    return answers.cpu(), time.perf_counter() - begin, [], 0


def _defended(defense: ActiveDefense, images: Tensor, ids: Tensor) -> tuple[Tensor, float, list[int], int]:
    begin = time.perf_counter()
    defended = defense.defend(images, ids=ids)
    seconds = time.perf_counter() - begin
    return defended.logits.argmax(1).cpu(), seconds, defended.steps.tolist(), int((~defended.converged).sum())


def _count(
    rows: dict[str, Row],
    name: str,
    labels: Tensor,
    answers: Tensor,
    seconds: float,
    steps: list[int],
    unconverged: int,
) -> None:
    accuracy = Accuracy(int((answers == labels.cpu()).sum()), len(labels))
    share = seconds / len(labels)
    if name not in rows:
        rows[name] = Row(name, accuracy, share, steps, unconverged)
        return
    row = rows[name]
    total = row.accuracy + accuracy
    row.seconds = (row.seconds * row.accuracy.count + seconds) / total.count
    row.accuracy = total
    row.steps += steps
    row.unconverged += unconverged
