"""The web application: images in, answers out, and what a watcher wants to know."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from fastdef.data import Decoder
from fastdef.serving.asking import Service
from fastdef.serving.bodies import IMAGE_TYPES, Refusal, number, read_image
from fastdef.serving.kserve import kserve
from fastdef.serving.lingering import Lingering
from fastdef.serving.metrics import Metrics
from fastdef.serving.page import Page, page_routes
from fastdef.serving.worker import Worker

_KINDS = (*IMAGE_TYPES, "application/octet-stream", "application/json", "multipart/form-data")
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {kind: {} for kind in _KINDS}}}


def application(
    worker: Worker,
    *,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    name: str = "fastdef",
    max_bytes: int = 1 << 20,
    body_seconds: float = 10.0,
    grace: float | None = None,
    replay: bool = False,
    background: str | None = None,
    resize: bool = False,
    page: Page | None = None,
    merge: Callable[[bytes], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """``/classify``, ``/health``, ``/metrics``, and the protocol of KServe v2. Closes the worker when it shuts down.

    ``POST /classify`` takes one image as a viewer shows it: PNG, JPEG, WebP, BMP or PNM (``image/png``, ``image/jpeg``,
    ``image/webp``, ``image/bmp``, ``image/x-portable-anymap``), raw little-endian float32 of C x H x W
    (``application/octet-stream``), JSON ``{"image": [[[...]]]}``, or a form with one file; the query has ``deadline``
    in seconds. A refusal is ``{"error": "one line"}`` with status 400, 408, 413, 415, 500 or 503, the last with
    ``Retry-After``: so is an image whose smoothing never began.

    Args:
        worker: answers.
        classes: their names.
        shape: (C, H, W) of the images.
        name: of the model, in the paths of KServe v2.
        max_bytes: of a request's body.
        body_seconds: that a body may take to come.
        grace: seconds for what was accepted when the server shuts down; as long as it takes if not given.
        replay: let a request choose its ``id``, which its noise hangs on, and tell it in the answer. Not where an
            attacker might ask: who chooses the noise has half an attack.
        background: colour to put under an image that is not opaque, such as "white"; it is refused without.
        resize: scale image files of another size (bilinear, antialiased) where they would be refused.
        page: shown at ``/``. Its data, such as smoothed images, help an attacker: whoever has its token gets them.
        merge: from the metrics of this application to those of all that answer beside it, both as Prometheus' text.

    Raises:
        ValueError: for what is no colour.
    """
    Decoder(background)
    service = Service(worker, Metrics(worker), name, classes, shape, max_bytes, body_seconds, replay)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(app.state.close)

    app = FastAPI(title="fastdef", lifespan=lifespan, redoc_url=None)
    app.state.worker, app.state.scrape = worker, service.metrics.scrape
    app.state.close = partial(worker.close, grace)
    app.include_router(kserve(service))
    if page is not None:
        app.include_router(page_routes(service, page, background))
    app.add_middleware(Lingering, seconds=body_seconds)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> JSONResponse:
        service.metrics.refused.labels(refusal.status).inc()
        return JSONResponse({"error": refusal.reason}, refusal.status, refusal.headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"ok": worker.alive, "waiting": worker.waiting}, 200 if worker.alive else 503)

    @app.get("/metrics")
    async def scrape() -> Response:
        own = service.metrics.scrape()
        return Response(own if merge is None else await merge(own), media_type=CONTENT_TYPE_LATEST)

    @app.post("/classify", openapi_extra=_BODY)
    async def classify(request: Request) -> JSONResponse:
        try:
            decoder = Decoder(background)
            image = await read_image(
                request, shape, most=max_bytes, seconds=body_seconds, decoder=decoder, resize=resize
            )
            service.metrics.treat(decoder.counts)
            deadline, id = number(request, "deadline", float), number(request, "id", int)
            if id is not None and not replay:
                raise ValueError("id is for a server with --replay")
        except ValueError as error:
            raise Refusal(400, " ".join(str(error).split())) from error
        (reply,) = await service.ask(request, [image], id=id, deadline=deadline)
        return JSONResponse(service.describe(reply))

    return app
