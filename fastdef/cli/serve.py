"""``fastdef serve``: a defended classifier over HTTP."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdef._cluster import check_replica_device, threads_each
from fastdef._validate import SERVER, check_installed
from fastdef.checkpoint import image_shape, load
from fastdef.cli._data import Background
from fastdef.cli._shared import DEFAULT_DEVICE, Device, DType, Size, Source, check_device, parse_dtype, tell_dtype
from fastdef.data import Decoder

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fastdef.serving.options import Options


def serve(
    model: Annotated[Path, typer.Argument(help="a model file with an active defense")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free")] = 8000,
    size: Size = None,
    background: Background = None,
    resize: Annotated[bool, typer.Option("--resize", help="scale image files of another size")] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes, each with the model and its slots")] = 1,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="processes of Ray Serve, each with a device; not with --workers")
    ] = None,
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
    dtype: DType = "float32",
    compile: Annotated[bool, typer.Option(help="torch.compile the step")] = True,
    device: Device = DEFAULT_DEVICE,
    source: Source = None,
) -> None:
    """Serve POST /classify (image files, raw float32, JSON, forms), KServe v2, /docs, /health, /metrics and a page."""
    check_installed(*SERVER, extra="serve", where="serve")
    from fastdef.serving import make_token
    from fastdef.serving.options import Options
    from fastdef.serving.run import Config, run

    if seed is not None and not replay:
        raise ValueError("--seed is for --replay: without it nobody may know the noise")
    Decoder(background)  # refuses what is no colour before a process starts
    parse_dtype(dtype)
    options = Options(
        model=model,
        size=size,
        background=background,
        resize=resize,
        queue=queue,
        slots=slots,
        max_steps=max_steps,
        longest=longest,
        max_bytes=max_bytes,
        body_seconds=body_seconds,
        grace=grace,
        replay=replay,
        seed=seed,
        dtype=dtype,
        compile=compile,
        device=device,
        source=source,
    )
    if replicas is not None:
        check_replica_device(device)
        if page:
            raise ValueError("--page needs one process, got --replicas: a look and its attacks are of one defense")
        _serve_replicas(options, replicas, workers, host=host, port=port, keep_alive=keep_alive)
        return
    token = make_token(page, host)
    run(
        Config(
            partial(_application, options, token),
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


def _application(options: "Options", token: str | None) -> "FastAPI":
    """In the process that serves it."""
    tell_dtype()
    check_device(options.device)
    return options.application(token=token)


def _serve_replicas(options: "Options", replicas: int, workers: int, *, host: str, port: int, keep_alive: int) -> None:
    if workers != 1:
        raise ValueError(f"--replicas needs --workers 1, got {workers}: each replica is a process of its own")
    check_installed("ray", extra="ray", where="--replicas")
    from fastdef.serving import cluster

    image_shape(load(options.model, source=options.source), options.size)  # refuses before a process starts
    found = {"model": options.model.absolute()} if options.model.exists() else {}  # else it is on the hub
    options = options.model_copy(update={"replicas": replicas, "threads": threads_each(replicas), **found})
    cluster.run(options, host=host, port=port, keep_alive=keep_alive)
