"""The first screen of the report: a bar for each row with its interval, and what the attack does to one image."""

import base64
import io
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdef.data import Dataset
from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from fastdef.evaluation.adaptive.results import AdaptiveResults, Line
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.target import Target


@dataclass(frozen=True)
class Bar:
    """An accuracy with its 95 % interval.

    Attributes:
        label: of the bar.
        kind: "headline"; "counts" of an attack on what is deployed; "aside" of anything else.
        mean: 0 to 1.
        low: end of the interval.
        high: the other one.
        count: images.
    """

    label: str
    kind: str
    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Picture:
    """An image for the page.

    Attributes:
        title: what it is.
        caption: what the undefended classifier takes it for.
        data: PNG in base64.
    """

    title: str
    caption: str
    data: str


def bars(results: AdaptiveResults) -> list[Bar]:
    """Clean images, then the lowest line of each row; the headline's with the figure that it is reported by."""
    clean = results.line(0, sanity.CLEAN)
    rows = sorted({line.case.row for line in results.lines if line.score} - {0})
    lowest = [_lowest(results, row) for row in rows]
    return [_bar(line, results) for line in (clean, *lowest) if line is not None]


def _lowest(results: AdaptiveResults, row: int) -> Line:
    headline = results.headline
    if headline is not None and headline.case.row == row:
        return headline
    lines = [line for line in results.lines if line.case.row == row and line.score]
    counting = [line for line in lines if line.case.counts] or lines
    return min(counting, key=lambda line: line.score.mean if line.score else 1.0)


def _bar(line: Line, results: AdaptiveResults) -> Bar:
    score = line.score
    if score is None:
        raise ValueError(f"{line.label} needs a score")
    label = "clean images" if line.case.row == 0 else line.label
    if line is results.headline:
        low, high = Accuracy(round(score.judgement * score.count), score.count).interval
        return Bar(label, "headline", score.judgement, low, high, score.count)
    return Bar(label, "counts" if line.case.counts else "aside", score.mean, *score.interval, score.count)


@torch.no_grad()
def pictures(results: AdaptiveResults, target: Target, dataset: Dataset) -> list[Picture]:
    """The image that stands least against the headline's attack: clean, attacked, and after the defense."""
    line = results.headline
    if line is None or not line.places:
        return []
    place = line.places[0]
    clean = dataset.floats(place, place + 1)
    stages = {"clean": clean, "attacked": line.examples[:1].to(clean)}
    if target.purify is not None:
        ids = noise_seeds(torch.tensor([place]), range(1), SeedStream.EVALUATION)
        stages["attacked, after the defense"] = target.purify(stages["attacked"], ids, None)
    return [Picture(title, _caption(target, dataset, image), _png(image[0])) for title, image in stages.items()]


def _caption(target: Target, dataset: Dataset, image: Tensor) -> str:
    return "" if target.classifier is None else dataset.classes[int(target.classifier(image).argmax())]


def _png(image: Tensor) -> str:
    """(C, H, W) floats -> PNG in base64."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy(force=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
