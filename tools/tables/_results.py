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
