"""The waterfall: what each technique adds."""

from pathlib import Path
from typing import Any

from fastdef.io import atomic_write


def waterfall(report: dict[str, Any], path: Path) -> None:
    """Bars of images a second by contender, of the report of ``bench_defense``, as PNG.

    Raises:
        ValueError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(report["contenders"])
    rates = [report["contenders"][name]["images_per_second"] for name in names]
    figure = Figure(figsize=(7, 0.45 * len(names) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    bars = axis.barh([name.replace("_", " ") for name in names], rates, color="tab:blue")
    axis.bar_label(bars, [f"{rate:.1f}  ({rate / rates[0]:.1f}x)" for rate in rates], padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(rates) * 1.2)
    axis.set_xlabel("images defended a second")
    machine = report["machine"]
    axis.set_title(
        f"{report['images']} images, {'x'.join(map(str, report['shape']))}, batch {report['batch']}; "
        f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}",
        fontsize=8,
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
