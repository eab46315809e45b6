"""A paper's figure, ours by the paper's attacks and by adaptive ones, and the difference, as a table in Markdown."""

from dataclasses import dataclass
from pathlib import Path

from fastdef.io import atomic_write


@dataclass(frozen=True)
class Figure:
    """One accuracy.

    Attributes:
        place: in the paper, such as "Table 1".
        what: is measured.
        paper: in %, as printed; None where the paper has none.
        ours: in %, attacked as the paper does it.
        count: images behind ours.
        adaptive: in %, what the strongest adaptive attack leaves of the same; None where none was run.
    """

    place: str
    what: str
    paper: float | None
    ours: float
    count: int
    adaptive: float | None = None


def write_table(figures: list[Figure], path: Path, *, title: str, note: str) -> None:
    """Write them, in the order they come in."""
    lines = [f"# {title}", "", note, "", _HEAD, "|---|---|---|---|---|---|---|"]
    for figure in figures:
        paper = "" if figure.paper is None else f"{figure.paper:.2f}"
        difference = "" if figure.paper is None else f"{figure.ours - figure.paper:+.2f}"
        adaptive = "" if figure.adaptive is None else f"{figure.adaptive:.2f}"
        cells = (figure.place, figure.what, paper, f"{figure.ours:.2f}", difference, adaptive, str(figure.count))
        lines.append(f"| {' | '.join(cells)} |")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


_HEAD = "| | | paper | ours, attacked as in the paper | difference | ours, adaptive | images |"
