"""Evaluating: what a random defense answers to the same images, many times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdef.attacks import predicted
from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.adaptive.attack_case import Batch, Evaluate, Predictions
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from fastdef.evaluation.adaptive.target import Target

MOST_LOSS = 1e4  # of an answer that is none, so that means stay numbers


def by_label(target: Target) -> Evaluate:
    """Whoever answers the label is right; every image is answered R times, with noise that no attacker has seen."""

    def evaluate(batch: Batch, images: Tensor, noise_samples: int, stream: SeedStream) -> Predictions:
        answers = target.answer(
            images.repeat_interleave(noise_samples, 0), noise_seeds(batch.ids, range(noise_samples), stream)
        )
        owners = batch.labels.repeat_interleave(noise_samples)
        loss = torch.nn.functional.cross_entropy(answers.logits.float(), owners, reduction="none")
        loss = loss.nan_to_num(nan=MOST_LOSS, posinf=MOST_LOSS)
        classes, shape = predicted(answers.logits), (len(images), noise_samples)
        return Predictions(
            right=(classes == owners).cpu().view(shape),
            steps=answers.steps.int().view(shape),
            capped=answers.capped.view(shape),
            loss=loss.view(shape).mean(1).cpu(),
            answered=(classes >= 0).cpu().view(shape),
        )

    return evaluate


def lowest(evaluate: Evaluate, batch: Batch, candidates: Sequence[Tensor], *, noise_samples: int) -> Tensor:
    """Of several candidates for each image, the one that is answered right least often.

    They are chosen by draws of their own: the least of several means, evaluated by the draws that chose it, would be
    too low by chance.
    """
    best = candidates[0]
    if len(candidates) == 1:
        return best
    least: Tensor | None = None
    for candidate in candidates:
        predictions = evaluate(batch, candidate, noise_samples, SeedStream.CHOICE)
        rank = torch.stack([predictions.right.float().mean(1), -predictions.loss], 1)
        if least is None:
            least = rank
            continue
        lower = (rank[:, 0] < least[:, 0]) | ((rank[:, 0] == least[:, 0]) & (rank[:, 1] < least[:, 1]))
        least = torch.where(lower[:, None], rank, least)
        best = torch.where(lower.to(best.device)[:, None, None, None], candidate, best)
    return best


@dataclass(frozen=True)
class Score:
    """What a case came to.

    Attributes:
        count: N, images.
        noise_samples: R.
        mean: accuracy, over images and noise samples.
        deviation: of the accuracy from one noise sample to the next; None where nothing is random.
        interval: Wilson's 95 % interval of the mean, with N answers: noise samples of an image are not independent.
        selection: mean over the first half of the noise samples, by which the headline is chosen among the cases.
        judgement: mean over the others, which is the headline's figure: the least of many means is too low by chance.
            Both are the mean where there is one sample.
        worst: images answered right under every noise sample: an attacker who may try R times.
        majority: images of which more than half of the answers are right: what a vote of R answers keeps at least.
        one_shot: accuracy under the first noise sample, AutoAttack's way to count.
        loss: mean cross-entropy.
        steps_median: of the defense.
        steps_most: of the defense.
        capped: answers that the cap cut off.
        unanswered: answers that are NaN or infinite, and so not right.
    """

    count: int
    noise_samples: int
    mean: float
    deviation: float | None
    interval: tuple[float, float]
    selection: float
    judgement: float
    worst: float
    majority: float
    one_shot: float
    loss: float
    steps_median: int
    steps_most: int
    capped: int
    unanswered: int

    @classmethod
    def of(cls, predictions: Predictions) -> "Score":
        """Count the answers."""
        right = predictions.right.double()
        count, noise_samples = right.shape
        each = right.mean(0)
        half = noise_samples // 2
        return cls(
            count=count,
            noise_samples=noise_samples,
            mean=float(right.mean()),
            deviation=float(each.std()) if noise_samples > 1 else None,
            interval=Accuracy(round(float(right.mean()) * count), count).interval,
            selection=float(each[:half].mean() if half else each.mean()),
            judgement=float(each[half:].mean()),
            worst=float(predictions.right.all(1).double().mean()),
            majority=float((right.mean(1) > 0.5).double().mean()),
            one_shot=float(each[0]),
            loss=float(predictions.loss.double().mean()),
            steps_median=int(predictions.steps.flatten().median()),
            steps_most=int(predictions.steps.max()),
            capped=int(predictions.capped.sum()),
            unanswered=int((~predictions.answered).sum()),
        )

    def to_json(self) -> dict[str, Any]:
        """Every figure, by name."""
        return {**self.__dict__, "interval": list(self.interval)}
