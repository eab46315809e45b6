"""Accuracy clean and attacked, undefended and defended, over a data set."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fastdef import distributed
from fastdef.attacks import GradientShares, frozen_eval, predicted
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.attack import Attack, Batch, Classifier, attacked_batches, gradients_vanished
from fastdef.evaluation.described import described


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: what was classified, and by what.
        accuracy: right answers.
        seconds: time to classify an image, the attack not counted.
        steps: gradient steps of the defense for each image; empty without a defense.
        unconverged: images that reached ``max_steps`` or the deadline.
        unanswered: images whose logits are NaN or infinite, which is never right.
        vanished: images answered right whose attack had no gradient to follow.
    """

    name: str
    accuracy: Accuracy
    seconds: float
    steps: list[int] = field(default_factory=list)
    unconverged: int = 0
    unanswered: int = 0
    vanished: int = 0

    @property
    def refusal(self) -> str:
        """Why the accuracy is no figure, in a sentence; empty where it is one."""
        return gradients_vanished(self.name, self.vanished, self.accuracy.count)

    def joined(self, other: "Row") -> "Row":
        """The line of this one's images and the other's."""
        total = self.accuracy + other.accuracy
        seconds = (self.seconds * self.accuracy.count + other.seconds * other.accuracy.count) / total.count
        return Row(
            self.name,
            total,
            seconds,
            self.steps + other.steps,
            self.unconverged + other.unconverged,
            self.unanswered + other.unanswered,
            self.vanished + other.vanished,
        )

    def to_json(self) -> dict[str, Any]:
        """The line, its steps as median and maximum."""
        counts = {"unanswered": self.unanswered, "vanished": self.vanished}
        line = {**self.accuracy.to_json(), **counts, "seconds_per_image": self.seconds}
        if self.steps:
            ordered = sorted(self.steps)
            line |= {"steps_median": ordered[len(ordered) // 2], "steps_max": ordered[-1]}
            line["unconverged"] = self.unconverged
        return line


@dataclass(frozen=True)
class Evaluation:
    """The results of ``evaluate``.

    Attributes:
        rows: clean, attacked, and with a defense both again.
        attack: what attacked.
        data: name and split of the images.
        device: where it ran.
        dtype: of the defense's networks; the undefended classifier is in float32.
        defense: its parameters; None without one.
        gradients: by loss of the attack, how many of its gradients were of no use.
    """

    rows: list[Row]
    attack: Attack
    data: str
    device: str
    dtype: str
    defense: dict[str, Any] | None
    gradients: dict[str, GradientShares]

    @property
    def refusals(self) -> list[str]:
        """A sentence for every row whose accuracy is no figure: too many of its images were not really attacked."""
        return [row.refusal for row in self.rows if row.refusal]

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {
            "data": self.data,
            "images": self.rows[0].accuracy.count,
            "attack": {**asdict(self.attack), "crafted_on": "the undefended model"},
            "device": self.device,
            "dtype": self.dtype,
            "defense": self.defense,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gradients": {loss: shares.to_json() for loss, shares in self.gradients.items()},
            "refusals": self.refusals,
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

    On several ranks each has its share of the batches, and all get the same counts as one would find.

    Args:
        model: images to logits; answers in eval mode, and is left as it was.
        dataset: on the device of the model.
        defense: of the same model.
        attack: PGD-20 at 8/255 by two losses if not given.
        batch_size: images at once.
        progress: called with the number of images that are through since the last call.

    Raises:
        ValueError: for an empty data set, a batch size under 1, or labels that the model has no class for.
    """
    attack = attack or Attack()
    if len(dataset) == 0:
        raise ValueError("evaluate needs at least one image, got an empty data set")
    batches = attacked_batches(model, dataset, attack, batch_size=batch_size)
    counted: list[list[Row]] = []
    gradients: list[dict[str, GradientShares]] = []
    with frozen_eval(model):  # answers in eval mode, which a model in training would not give
        _check_classes(model, dataset)
        for batch in batches:
            counted.append(_rows(model, defense, batch))
            gradients.append(batch.gradients)
            progress(min(distributed.world_size() * batch_size, len(dataset) - int(batch.ids[0])))
    return Evaluation(
        rows=[reduce(Row.joined, parts) for parts in zip(*distributed.all_gather_shards(counted), strict=True)],
        attack=attack,
        data=f"{dataset.name} {dataset.split}",
        device=str(dataset.images.device),
        dtype=str(defense.dtype if defense else torch.float32).removeprefix("torch."),
        defense=described(defense) if defense else None,
        gradients=_joined(attack.losses, distributed.all_gather_shards(gradients)),
    )


def _rows(model: Classifier, defense: ActiveDefense | None, batch: Batch) -> list[Row]:
    kinds = {"clean": batch.images, "attacked": batch.attacked}
    answers = {kind: _plain(model, given) for kind, given in kinds.items()}
    if defense is not None:
        answers |= {f"{kind}, defended": _defended(defense, given, batch.ids) for kind, given in kinds.items()}
    return [_counted(name, batch, *answer) for name, answer in answers.items()]


def _joined(losses: Sequence[str], parts: Sequence[dict[str, GradientShares]]) -> dict[str, GradientShares]:
    return {loss: sum((part.get(loss, GradientShares()) for part in parts), GradientShares()) for loss in losses}


@torch.no_grad()
def _check_classes(model: Classifier, dataset: Dataset) -> None:
    classes = model(dataset.floats(0, 1)).shape[1]
    if int(dataset.labels.max()) >= classes:
        raise ValueError(
            f"evaluate needs labels that the model has: {classes} classes, got a label {int(dataset.labels.max())}"
        )


def _finish(images: Tensor) -> None:
    """Wait for the attack: a GPU may still be at it, and its time is not the classifier's."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


@torch.no_grad()
def _plain(model: Classifier, images: Tensor) -> tuple[Tensor, float, list[int], int]:
    _finish(images)
    begin = time.perf_counter()
    answers = predicted(model(images))
    return answers.cpu(), time.perf_counter() - begin, [], 0


def _defended(defense: ActiveDefense, images: Tensor, ids: Tensor) -> tuple[Tensor, float, list[int], int]:
    _finish(images)
    begin = time.perf_counter()
    defended = defense.defend(images, ids=ids)
    seconds = time.perf_counter() - begin
    return predicted(defended.logits).cpu(), seconds, defended.steps.tolist(), int((~defended.converged).sum())


def _counted(name: str, batch: Batch, answers: Tensor, seconds: float, steps: list[int], unconverged: int) -> Row:
    right, count = answers == batch.labels.cpu(), len(answers)
    return Row(
        name=name,
        accuracy=Accuracy(int(right.sum()), count),
        seconds=seconds / count,
        steps=steps,
        unconverged=unconverged,
        unanswered=int((answers < 0).sum()),
        vanished=int((right & batch.vanished).sum()) if name.startswith("attacked") else 0,
    )
