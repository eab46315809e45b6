"""``fastdef card``: a model card."""

from pathlib import Path
from typing import Annotated

import typer

from fastdef.checkpoint import image_shape, load
from fastdef.cli._shared import Size, Source
from fastdef.hub import Evidence, model_card, push_to_hub
from fastdef.io import atomic_write


def card(
    model: Annotated[Path, typer.Argument(help="a model file")],
    out: Annotated[Path | None, typer.Option(help="file to write; printed if not given")] = None,
    report: Annotated[Path | None, typer.Option(help="folder of its adaptive evaluation")] = None,
    bench: Annotated[Path | None, typer.Option(help="what `fastdef bench defense --json` wrote of it")] = None,
    name: Annotated[str | None, typer.Option(help="title; the file's name if not given")] = None,
    license: Annotated[str | None, typer.Option(help="of the weights, by its identifier on the hub: mit, ...")] = None,
    push: Annotated[str | None, typer.Option(help="user/model: upload the model with its card there")] = None,
    size: Size = None,
    source: Source = None,
) -> None:
    """Write a model card: Markdown with the Hugging Face hub's metadata, the adaptive evaluation's figure first."""
    checkpoint, evidence = load(model, source=source), Evidence.read(report, bench)
    shape = image_shape(checkpoint, size)
    title = name or (model.stem if model.stem != "model" else model.resolve().parent.name)
    text = model_card(
        checkpoint, name=title, repo_id=push or "USER/MODEL", shape=shape, evidence=evidence, license=license
    )
    if out is not None:
        with atomic_write(out) as temporary:
            temporary.write_text(text)
        typer.echo(f"wrote {out}")
    if push is not None:
        typer.echo(
            f"pushed to {push_to_hub(model, push, shape=shape, evidence=evidence, license=license, source=source)}"
        )
    if out is None and push is None:
        typer.echo(text, nl=False)
