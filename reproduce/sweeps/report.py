"""What a sweep found: tables in Markdown, one figure, and every point in one JSON file."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdef.io import atomic_write, write_json
from reproduce.sweeps.plan import Training

_CONTROLS = ("undefended", "noise", "blur", "defended")
_MARKS = {
    "undefended": ("x", "0.5"),
    "noise": ("o", "tab:orange"),
    "blur": ("s", "tab:green"),
    "defended": ("D", "tab:blue"),
}
_ATTACKS = {"PGD-20": "PGD-20 on the undefended model", "aware": "APGD-CE through the defense"}
_PANELS = {"clean": "clean images", **_ATTACKS}


@dataclass(frozen=True)
class Point:
    """A training, and what was measured on its model."""

    training: Training
    found: dict[str, Any]

    @classmethod
    def read(cls, training: Training, path: Path) -> "Point":
        """From the file that ``measure`` wrote."""
        return cls(training, json.loads(path.read_text()))

    def accuracy(self, row: str, kind: str) -> float:
        """In %."""
        return 100 * float(self.found["rows"][row][kind]["mean"])

    def feature(self, images: str, name: str) -> float:
        """Of the layer that the defense descends."""
        return float(self.found["features"][self.found["layer"]][images][name])

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        training = {**asdict(self.training), "file": None if self.training.file is None else self.training.file.name}
        return {"training": training, **self.found}


def write_report(points: Sequence[Point], out: Path) -> None:
    """``table.md``, ``sweep.png`` and ``points.json`` in ``out``."""
    write_json(out / "points.json", {point.training.name: point.to_json() for point in points})
    first = points[0].found
    count, aware = (first["rows"]["undefended"][kind]["count"] for kind in ("clean", "aware"))
    there = ", ".join(f"{name} {value}" for name, value in first["machine"].items() if value is not None)
    parts = [
        "# When does Active Defense recover attacked images?",
        f"{first['data']}, accuracy in %, eps 8/255: {count} images, and {aware} where the attack knows the defense. "
        f"Half of a 95 % interval is up to {98 / count**0.5:.0f} and {98 / aware**0.5:.0f} points. {there}.",
        *_told("Trainings", _TRAININGS, points),
        *_told(
            "Accuracy. PGD: PGD-20 on the undefended model; APGD: APGD-CE on it; knows: APGD-CE through the defense",
            _ACCURACY,
            points,
        ),
        *_told(
            "What each part adds, in points, against PGD-20 and against an attacker who knows", _PARTS, _paired(points)
        ),
        *_told("Smoothed or shrunk? L_F of the layer that the defense descends", _FEATURES, points),
        *_told(f"Other settings of the defense, on {count // 2} images", _VARIANTS, _varied(points)),
    ]
    with atomic_write(out / "table.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    _draw(points, out / "sweep.png")


def _told(title: str, columns: dict[str, Callable[[Any], str]], rows: Iterable[Any]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return [f"## {title}", "\n".join(lines)] if len(lines) > 2 else []


def _cells(row: str, *kinds: str) -> Callable[[Point], str]:
    return lambda point: " / ".join(f"{point.accuracy(row, kind):.1f}" for kind in kinds)


def _steps(point: Point, row: str = "defended") -> str:
    on = [point.found["rows"][row][kind] for kind in ("clean", "PGD-20")]
    return f"{on[0]['steps_median']}, {max(s['steps_most'] for s in on)}, {sum(s['capped'] for s in on)}"


_TRAININGS: dict[str, Callable[[Point], str]] = {
    "": lambda point: point.training.name,
    "network": lambda point: point.training.architecture,
    "L_F of": lambda point: f"{point.training.features} features" if point.training.delta else "not trained on",
    "delta": lambda point: f"{point.training.delta:g}",
    "epochs": lambda point: str(point.training.epochs),
    "images": lambda point: "all" if point.training.images is None else str(point.training.images),
    "batch": lambda point: str(point.training.batch_size),
    "beta": lambda point: f"{point.found['defenses']['defended']['beta']:.3g}",
    "threshold": lambda point: f"{point.found['defenses']['defended']['delta']:.3g}",
    "pixel rms: noise": lambda point: f"{point.found['rows']['noise']['pixel_rms']:.3f}",
    "defended, and blur": lambda point: f"{point.found['rows']['defended']['pixel_rms']:.3f}",
}
_ACCURACY: dict[str, Callable[[Point], str]] = {
    "": lambda point: point.training.name,
    "undefended: clean / PGD / APGD": _cells("undefended", "clean", "PGD-20", "APGD-CE"),
    "noise alone: clean / PGD / APGD / knows": _cells("noise", "clean", "PGD-20", "APGD-CE", "aware"),
    "blur: clean / PGD / APGD / knows": _cells("blur", "clean", "PGD-20", "APGD-CE", "aware"),
    "defended: clean / PGD / APGD / knows": _cells("defended", "clean", "PGD-20", "APGD-CE", "aware"),
    "steps: median, most, capped": _steps,
}
_FEATURES: dict[str, Callable[[Point], str]] = {
    "": lambda point: point.training.name,
    "clean": lambda point: f"{point.feature('clean', 'loss'):.4g}",
    "noise adds, %": lambda point: f"{_added(point, 'clean, noised'):+.1f}",
    "in spreads of clean images": lambda point: f"{_spreads(point, 'clean, noised'):+.2f}",
    "PGD-20 adds, %": lambda point: f"{_added(point, 'attacked'):+.1f}",
    "L_F / std F: clean": lambda point: f"{point.feature('clean', 'smoothness'):.3f}",
    "noised": lambda point: f"{point.feature('clean, noised', 'smoothness'):.3f}",
    "attacked": lambda point: f"{point.feature('attacked', 'smoothness'):.3f}",
    "smoothed": lambda point: f"{point.feature('clean, smoothed', 'smoothness'):.3f}",
}


def _added(point: Point, images: str) -> float:
    """To the mean L_F of clean images, in %."""
    return 100 * (point.feature(images, "loss") / point.feature("clean", "loss") - 1)


def _spreads(point: Point, images: str) -> float:
    """The same in deviations of L_F from one clean image to the next."""
    return (point.feature(images, "loss") - point.feature("clean", "loss")) / point.feature("clean", "spread")


def _paired(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Each smoothed model with its standard twin."""
    known = {point.training.name: point for point in points}
    return [(point, known[twin]) for point in points if (twin := point.training.twin) in known]


def _gain(row: str, control: str, *, of: int) -> Callable[[tuple[Point, Point]], str]:
    """What ``row`` of the model has over ``control`` of the model (0) or of its twin (1)."""

    def told(pair: tuple[Point, Point]) -> str:
        return " / ".join(f"{pair[0].accuracy(row, kind) - pair[of].accuracy(control, kind):+.1f}" for kind in _ATTACKS)

    return told


_PARTS: dict[str, Callable[[tuple[Point, Point]], str]] = {
    "": lambda pair: pair[0].training.name,
    "defended: PGD / knows": lambda pair: _cells("defended", *_ATTACKS)(pair[0]),
    "the descent, over noise alone": _gain("defended", "noise", of=0),
    "the training, over the standard twin defended alike": _gain("defended", "defended", of=1),
    "both, over the twin with noise alone": _gain("defended", "noise", of=1),
    "over blur": _gain("defended", "blur", of=0),
}


def _varied(points: Sequence[Point]) -> list[tuple[Point, str]]:
    return [(point, name) for point in points for name in list(point.found["settings"])[1:]]


_VARIANTS: dict[str, Callable[[tuple[Point, str]], str]] = {
    "": lambda row: row[0].training.name,
    "setting": lambda row: row[1],
    "pixel rms": lambda row: f"{row[0].found['rows'][row[1]]['pixel_rms']:.3f}",
    "clean / PGD": lambda row: _cells(row[1], "clean", "PGD-20")(row[0]),
    "steps: median, most, capped": lambda row: _steps(*row),
}


def _draw(points: Sequence[Point], path: Path) -> None:
    """Each training's accuracy, clean and under both attackers, behind each control and behind the defense."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 0.32 * len(points) + 1.8), layout="constrained")
    FigureCanvasAgg(picture)
    places = range(len(points))
    for axis, (kind, title) in zip(picture.subplots(1, 3, sharey=True), _PANELS.items(), strict=True):
        for row in _CONTROLS:
            marker, colour = _MARKS[row]
            values = [point.accuracy(row, kind) for point in points]
            axis.scatter(values, places, marker=marker, color=colour, s=28, label=row, zorder=2)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("accuracy, %")
        axis.set_xlim(-2, 100)
        axis.grid(alpha=0.3)
        axis.set_yticks(places, [point.training.name for point in points], fontsize=8)
    axis.invert_yaxis()
    picture.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    with atomic_write(path) as temporary:
        picture.savefig(temporary, format="png", dpi=110)
