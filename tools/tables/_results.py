"""Where the results are, and a table in Markdown."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CPU = ROOT / "benchmarks" / "results" / "cpu-2-cores"


def read(name: str) -> Any:
    """A file of the results on two cores."""
    return json.loads((CPU / name).read_text())


def table(heads: list[str], rows: list[list[str]]) -> str:
    """The cells as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def called(line: dict[str, Any]) -> str:
    """Row and name of a line of an adaptive report."""
    return f"{line['row']} {line['name']}"


def headlined(report: dict[str, Any]) -> dict[str, Any]:
    """The line that an adaptive report's headline is of."""
    return next(line for line in report["lines"] if called(line) == report["headline_of"])
