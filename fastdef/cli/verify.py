"""``fastdef verify``: does an engine give the answers that an export is known to give?"""

from pathlib import Path
from typing import Annotated

import typer

from fastdef.export.verify import ENGINES
from fastdef.export.verify import verify as verify_export


def verify(
    folder: Annotated[Path, typer.Argument(help="folder that `fastdef export` wrote")],
    engine: Annotated[list[str], typer.Option(help=f"{', '.join(ENGINES)}; may be given several times")] = [  # noqa: B006
        "onnxruntime"
    ],
) -> None:
    """Ask engines for the answers that the export is known to give; the first that gives others is refused."""
    unknown = [name for name in engine if name not in ENGINES]
    if unknown:
        raise ValueError(f"--engine needs to be among {', '.join(ENGINES)}, got {unknown[0]!r}")
    for name in engine:
        for files in verify_export(folder, ENGINES[name]):
            typer.echo(f"{name}: {files} gives the known answers")
