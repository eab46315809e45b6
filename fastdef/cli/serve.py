"""``fastdef serve``: a defended classifier over HTTP."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdef.checkpoint import load
from fastdef.cli._data import Background
from fastdef.cli._shared import DEFAULT_DEVICE, Device, Size, Source, check_device, image_shape
from fastdef.data import Decoder
from fastdef.defense import ActiveDefense

if TYPE_CHECKING:
    from fastapi import FastAPI


def serve(
    model: Annotated[Path, typer.Argument(help="a model file with an active defense")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free")] = 8000,
    size: Size = None,
    background: Background = None,
    resize: Annotated[bool, typer.Option("--resize", help="scale image files of another size")] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes, each with the model and its slots")] = 1,
    queue: Annotated[int, typer.Option(min=1, help="images that may wait for a slot")] = 256,
    slots: Annotated[int, typer.Option(min=1, help="images in flight")] = 64,
    max_steps: Annotated[int | None, typer.Option(min=1, help="steps an image may take")] = None,
    longest: Annotated[float, typer.Option(min=0.001, help="seconds an image may take, its wait included")] = 30.0,
    max_bytes: Annotated[int, typer.Option(min=1, help="of a request's body")] = 1 << 20,
    body_seconds: Annotated[float, typer.Option(min=0.1, help="seconds a request may take to come")] = 10.0,
    keep_alive: Annotated[int, typer.Option(min=1, help="seconds an idle connection is kept")] = 5,
    connections: Annotated[int, typer.Option(min=1, help="open at a time, for each worker")] = 512,
    grace: Annotated[float, typer.Option(min=0, help="seconds for what was accepted, once it has to stop")] = 35.0,
    page: Annotated[
        bool | None, typer.Option("--page/--no-page", help="show the defense at /; if --host is a loopback address")
    ] = None,
    replay: Annotated[bool, typer.Option("--replay", help="let requests choose the id of their noise")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="of the noise, with --replay; else the system's")] = None,
    compile: Annotated[bool, typer.Option(help="torch.compile the step")] = True,
    device: Device = DEFAULT_DEVICE,
    source: Source = None,
) -> None:
    """Serve POST /classify (image files, raw float32, JSON, forms), KServe v2, /docs, /health, /metrics and a page."""
    try:
        from fastdef.serving import make_token
        from fastdef.serving.run import Config, run
    except ImportError as error:
        raise ValueError(f"serve needs {error.name}: pip install 'fastdef[serve]'") from error
    if seed is not None and not replay:
        raise ValueError("--seed is for --replay: without it nobody may know the noise")
    Decoder(background)  # refuses what is no colour before a process starts
    token = make_token(page, host)
    options = {} if max_steps is None else {"max_steps": max_steps}
    make = partial(
        _application,
        model,
        token=token,
        size=size,
        device=device,
        source=source,
        defense={"seed": seed, "slots": slots, "compile": compile, **options},
        worker={"queue_size": queue, "longest": longest},
        http={
            "max_bytes": max_bytes,
            "body_seconds": body_seconds,
            "grace": grace,
            "replay": replay,
            "background": background,
            "resize": resize,
        },
    )
    run(
        Config(
            make,
            host=host,
            port=port,
            workers=workers,
            connections=connections,
            head_seconds=body_seconds,
            token=token,
            timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=math.ceil(grace) + 5,  # the worker is done before
        )
    )


def _application(
    model: Path,
    *,
    token: str | None,
    size: int | None,
    device: str,
    source: str | None,
    defense: dict[str, Any],
    worker: dict[str, Any],
    http: dict[str, Any],
) -> "FastAPI":
    """The application of a model file, warm; its options by who takes them."""
    from fastdef.serving import Page, Worker, application

    checkpoint = load(model, device=check_device(device), source=source)
    shape = image_shape(checkpoint, size)
    defended = ActiveDefense.from_checkpoint(checkpoint, **defense)
    answering = Worker(defended, shape, **worker)
    answering.warm()
    page = None if token is None else Page.of_file(token, defended, model)
    return application(answering, classes=checkpoint.classes, shape=shape, name=model.stem, page=page, **http)
