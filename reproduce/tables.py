"""A paper's figure, ours, and the difference, as a table in Markdown."""

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
        ours: in %.
        count: images behind ours.
    """

    place: str
    what: str
    paper: float | None
    ours: float
    count: int


def write_table(figures: list[Figure], path: Path, *, title: str, note: str) -> None:
    """Write them, in the order they come in."""
    lines = [f"# {title}", "", note, "", "| | | paper | ours | difference | images |", "|---|---|---|---|---|---|"]
    for figure in figures:
        paper = "" if figure.paper is None else f"{figure.paper:.2f}"
        difference = "" if figure.paper is None else f"{figure.ours - figure.paper:+.2f}"
        lines.append(
            f"| {figure.place} | {figure.what} | {paper} | {figure.ours:.2f} | {difference} | {figure.count} |"
        )
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
