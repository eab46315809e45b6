"""Accuracy, fusing weight and channel statistics against the attack's strength, as one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdef.evaluation.afa import Strengths
from fastdef.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHANNELS = 12  # lines that can still be told apart
_STYLES = ("-", ":", "--", "-.")  # of a model whole, and of its parts


def draw_strengths(models: Mapping[str, Strengths], path: Path, *, title: str) -> None:
    """A PNG: accuracy against eps of every model; W1 against eps of those that have it; channels of the last model.

    Raises:
        ValueError: if the file cannot be written.
    """
    with atomic_write(path) as temporary:
        strengths_figure(models, title=title).savefig(temporary, format="png", dpi=120)


def strengths_figure(models: Mapping[str, Strengths], *, title: str) -> "Figure":
    """The picture, before it is written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    (accuracy, weight), (mean, variance) = figure.subplots(2, 2)
    _accuracies(accuracy, models)
    _weights(weight, models)
    name, last = list(models.items())[-1]
    for axis, what in ((mean, "mean"), (variance, "variance")):
        for channel in range(min(_CHANNELS, len(last.shifts[0].mean))):
            values = [getattr(shift, what)[channel] for shift in last.shifts]
            axis.plot([eps * 255 for eps in last.strengths], values, marker=".", linewidth=1)
        axis.set_title(f"{name}: {what} of {last.layer}'s first channels", fontsize=9)
        axis.set_xlabel("eps, 255ths")
    figure.suptitle(title, fontsize=9)
    return figure


def _accuracies(axis: Any, models: Mapping[str, Strengths]) -> None:
    for number, (name, strengths) in enumerate(models.items()):
        eps = [value * 255 for value in strengths.strengths]
        for index, (row, accuracies) in enumerate(strengths.rows.items()):
            values = [100 * accuracy.value for accuracy in accuracies]
            spread = [  # at 0 and at 1 the interval ends there, but for rounding
                [100 * max(0.0, a.value - a.interval[0]) for a in accuracies],
                [100 * max(0.0, a.interval[1] - a.value) for a in accuracies],
            ]
            label = name if len(strengths.rows) == 1 else f"{name}: {row}"
            looks = {"color": f"C{number}", "linestyle": _STYLES[index % len(_STYLES)], "capsize": 2}
            axis.errorbar(eps, values, yerr=spread, marker="o", markersize=3, label=label, **looks)
    axis.set_ylim(0, 100)
    axis.set_ylabel("accuracy, %, with 95 % interval")
    axis.set_xlabel("eps of white-box PGD, 255ths")
    many = len(axis.get_legend_handles_labels()[1]) > 8
    axis.legend(fontsize=6 if many else 7, ncols=2 if many else 1, loc="upper right")


def _weights(axis: Any, models: Mapping[str, Strengths]) -> None:
    for number, (name, strengths) in enumerate(models.items()):
        weights = [shift.w1 for shift in strengths.shifts if shift.w1 is not None]
        if weights:
            means, deviations = zip(*weights, strict=True)
            eps = [value * 255 for value in strengths.strengths]
            axis.errorbar(eps, means, deviations, color=f"C{number}", marker="o", capsize=3, label=name)
    if not axis.lines:
        axis.text(0.5, 0.5, "no model here has a fusing weight", ha="center", transform=axis.transAxes)
    else:
        axis.legend(fontsize=7)
    axis.set_ylim(0, 1)
    axis.set_ylabel("W1, mean and deviation over images")
    axis.set_xlabel("eps of PGD through the whole model, 255ths")
