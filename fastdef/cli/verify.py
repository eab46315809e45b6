"""``fastdef verify``: does an engine give the answers that an export is known to give?"""

from pathlib import Path
from typing import Annotated

import typer

from fastdef.cli._shared import Json, working
from fastdef.export.verify import ENGINES
from fastdef.export.verify import verify as verify_export
from fastdef.io import write_json


def verify(
    folder: Annotated[Path, typer.Argument(help="folder that `fastdef export` wrote")],
    engine: Annotated[list[str], typer.Option(help=f"{', '.join(ENGINES)}; may be given several times")] = [  # noqa: B006
        "onnxruntime"
    ],
    json_file: Json = None,
) -> None:
    """Compare engines with the known answers of an export; the first that gives others is refused."""
    unknown = [name for name in engine if name not in ENGINES]
    if unknown:
        raise ValueError(f"--engine needs to be among {', '.join(ENGINES)}, got {unknown[0]!r}")
    verified: dict[str, list[str]] = {}
    for name in engine:
        with working(f"{name}: known answers"):
            verified[name] = verify_export(folder, ENGINES[name])
        for files in verified[name]:
            typer.echo(f"{name}: {files} gives the known answers")
    if json_file is not None:
        write_json(json_file, verified)
