"""``fastdef info``: what a model file holds."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fastdef.checkpoint import load
from fastdef.cli._shared import Json, Source
from fastdef.hub import describe
from fastdef.io import write_json


def info(
    model: Annotated[Path, typer.Argument(help="a model file, here or hf://user/model")],
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Print architecture, images, classes, defense and training of a model file."""
    facts = describe(load(model, source=source), model if model.is_file() else None)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(facts):
        table.add_row(name, value)
    Console().print(table, highlight=False)
    if json_file is not None:
        write_json(json_file, facts)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _text(value)) for name, value in facts.items()]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "\n".join(f"{name.replace('_', ' ')}: {_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(_text(one) for one in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
