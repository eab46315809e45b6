"""The pictures of the report, as text that a page can hold: SVG for curves, PNG in base64 for images."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdef.data import Dataset
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from fastdef.evaluation.adaptive.results import AdaptiveResults, Line
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.target import Target
from fastdef.nn import prefix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAGNIFIED = 8  # times, the difference that an attack makes


def draw_curves(results: AdaptiveResults) -> str | None:
    """Accuracy against eps, and against iterations, with 95 % intervals; None where the curves were not run."""
    by_eps = [line for line in results.lines if line.case.row == 0 and "eps" in line.case.name]
    by_eps += [line for line in results.lines if by_eps and _alike(line, by_eps[0])]
    by_iterations = [line for line in results.lines if line.case.name.startswith(f"{sanity.CURVE} iterations")]
    clean = results.line(0, sanity.CLEAN)
    if not by_eps or clean is None:
        return None
    figure = _figure(9.6, 3.0)
    left, right = figure.subplots(1, 2, sharey=True)
    lines = sorted([clean, *by_eps], key=lambda line: line.case.eps)
    _plot(left, lines, [line.case.eps * 255 for line in lines])
    left.set_xlabel("eps, in 255ths")
    left.set_ylabel("answered right, %")
    lines = sorted(by_iterations, key=lambda line: line.case.craft.settings["iterations"])
    _plot(right, lines, [line.case.craft.settings["iterations"] for line in lines])
    right.set_xlabel(f"iterations at eps {results.settings['eps'] * 255:g}/255")
    right.set_xscale("log")
    right.set_xticks([line.case.craft.settings["iterations"] for line in lines], minor=False)
    right.set_xticks([], minor=True)
    right.xaxis.set_major_formatter("{x:g}")
    left.set_ylim(-2, 102)
    return _svg(figure)


def draw_steps(results: AdaptiveResults) -> str | None:
    """How many steps the defense took: clean, and under the headline's attack; None without a defense."""
    clean, headline = results.line(0, sanity.CLEAN), results.headline
    lines = [line for line in (clean, headline) if line is not None and max(line.steps) > 0]
    if not lines:
        return None
    most = max(max(line.steps) for line in lines)
    edges = torch.logspace(0, torch.log10(torch.tensor(most + 1.0)).item(), 30).tolist()
    figure = _figure(9.6, 2.4)
    axis = figure.subplots()
    for line in lines:
        shares = [1 / len(line.steps)] * len(line.steps)
        axis.hist([max(1, n) for n in line.steps], bins=edges, weights=shares, histtype="step", label=line.case.name)
    axis.set_xscale("log")
    axis.set_xlabel("steps of the defense")
    axis.set_ylabel("share of answers")
    axis.legend(frameon=False, fontsize=8)
    return _svg(figure)


@torch.no_grad()
def draw_examples(results: AdaptiveResults, target: Target, dataset: Dataset) -> str | None:
    """What the headline's attack did to its hardest images, and the defense after it; a feature map beside each."""
    line = results.headline
    if line is None or not line.places:
        return None
    clean = torch.cat([dataset.floats(place, place + 1) for place in line.places])
    attacked = line.examples.to(clean)
    stages = {"clean": clean, "attacked": attacked}
    if target.purify is not None:
        ids = noise_seeds(torch.tensor(line.places), range(1), SeedStream.EVALUATION)
        stages["attacked, purified"] = target.purify(attacked, ids, None)
    maps = _feature_maps(target, stages)
    width = len(stages) + len(maps) + 1
    figure = _figure(1.5 * width, 1.5 * len(line.places))
    axes = figure.subplots(len(line.places), width, squeeze=False)
    columns = iter(axes.T)
    nothing = [""] * len(line.places)
    _show(next(columns), f"difference x {_MAGNIFIED}", _pixels(0.5 + _MAGNIFIED * (attacked - clean) / 2), nothing)
    for name, images in stages.items():
        _show(next(columns), name, _pixels(images), _answers(target, dataset, images))
        if name in maps:
            _show(next(columns), "features", maps[name], nothing)
    for row, place in zip(axes, line.places, strict=True):
        row[0].set_ylabel(dataset.classes[int(dataset.labels[place])], fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return base64.b64encode(buffer.getvalue()).decode()


def _show(column: "Sequence[Axes]", title: str, pixels: Tensor, captions: Sequence[str]) -> None:
    """A column of images in [0, 1], gray (K, H, W) or colours (K, H, W, 3 or 4), each over its caption."""
    column[0].set_title(title, fontsize=8)
    for axis, image, caption in zip(column, pixels.numpy(force=True), captions, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[], frame_on=False)
        axis.set_xlabel(caption, fontsize=7)


def _pixels(images: Tensor) -> Tensor:
    """(K, C, H, W) -> (K, H, W, 3), or (K, H, W) of one channel."""
    return images.clamp(0, 1).permute(0, 2, 3, 1).squeeze(3)


def _answers(target: Target, dataset: Dataset, images: Tensor) -> list[str]:
    if target.classifier is None:
        return [""] * len(images)
    return [dataset.classes[answer] for answer in target.classifier(images).argmax(1).tolist()]


def _alike(line: Line, other: Line) -> bool:
    """Row 3's line with the attack of the curve, at the eps of the suite."""
    settings, others = line.case.craft.settings, other.case.craft.settings
    same = all(settings.get(name) == others.get(name) for name in ("steps", "eot", "iterations"))
    return line.case.row == 3 and settings.get("loss") == "cross-entropy" and same


def _feature_maps(target: Target, stages: dict[str, Tensor]) -> dict[str, Tensor]:
    """(K, H, W, 4) colours of the channel that the attack changes most; nothing where no layer is smoothed."""
    from matplotlib import colormaps

    if target.defense is None or target.classifier is None:
        return {}
    layer = prefix(target.defense.model, target.defense.layer)
    features = {name: layer(images) for name, images in stages.items()}
    channel = (features["attacked"] - features["clean"]).abs().mean((0, 2, 3)).argmax()
    maps = {name: values[:, channel].cpu() for name, values in features.items()}
    low, high = (extreme(torch.stack(list(maps.values()))) for extreme in (torch.amin, torch.amax))
    return {
        name: torch.from_numpy(colormaps["viridis"](((values - low) / (high - low)).numpy()))
        for name, values in maps.items()
    }


def _plot(axis: object, lines: list[Line], places: list[float]) -> None:
    scores = [line.score for line in lines if line.score is not None]
    means = [100 * score.mean for score in scores]
    low = [100 * max(0.0, score.mean - score.interval[0]) for score in scores]
    high = [100 * max(0.0, score.interval[1] - score.mean) for score in scores]
    axis.errorbar(places, means, [low, high], marker="o", markersize=3, capsize=2, linewidth=1)  # type: ignore[attr-defined]


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _svg(figure: "Figure") -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
