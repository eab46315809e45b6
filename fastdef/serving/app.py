"""The web application: images in, answers out, and what a watcher wants to know."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from torch import Tensor

from fastdef.data import decode_image
from fastdef.serving.batcher import Batcher, Full, Reply

_IMAGE_TYPES = ("image/png", "image/jpeg")
_RAW = "application/octet-stream"


class _Metrics:
    """Counted for Prometheus, each application its own."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        self.images = Counter("fastdef_images", "images answered", registry=self.registry)
        self.steps = Counter("fastdef_steps", "steps of the defense", registry=self.registry)
        self.capped = Counter("fastdef_capped", "images that their cap cut off", registry=self.registry)
        self.expired = Counter("fastdef_expired", "images whose deadline passed", registry=self.registry)
        self.refused = Counter("fastdef_refused", "requests refused", ["status"], registry=self.registry)
        self.seconds = Histogram("fastdef_seconds", "from coming to answer", registry=self.registry)
        waiting = Gauge("fastdef_waiting", "images without a slot", registry=self.registry)
        waiting.set_function(lambda: batcher.waiting)

    def count(self, reply: Reply) -> None:
        self.images.inc()
        self.steps.inc(reply.steps)
        self.capped.inc(not reply.converged and not reply.expired)
        self.expired.inc(reply.expired)
        self.seconds.observe(reply.seconds)


class _Refusal(Exception):
    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


def application(
    batcher: Batcher,
    *,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    max_bytes: int = 1 << 20,
    replay: bool = False,
) -> FastAPI:
    """``POST /classify``, ``GET /health``, ``GET /metrics``. Closes the batcher when it shuts down.

    ``/classify`` takes one image: PNG or JPEG (``image/png``, ``image/jpeg``), raw little-endian float32 of C x H x W
    (``application/octet-stream``), or JSON ``{"image": [[[...]]]}``; the query has ``deadline`` in seconds. A refusal
    is ``{"error": "one line"}`` with status 400, 413, 415, 500 or 503, the last with ``Retry-After``.

    Args:
        batcher: answers.
        classes: their names.
        shape: (C, H, W) of the images.
        max_bytes: of a request's body.
        replay: let a request choose its ``id``, which its noise hangs on, and tell it in the answer. Not where an
            attacker might ask: who chooses the noise has half an attack.
    """
    metrics = _Metrics(batcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="fastdef", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(_Refusal)
    async def refuse(request: Request, refusal: _Refusal) -> JSONResponse:
        metrics.refused.labels(refusal.status).inc()
        return JSONResponse({"error": refusal.reason}, refusal.status, refusal.headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"ok": batcher.alive, "waiting": batcher.waiting}, 200 if batcher.alive else 503)

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        body = await _body(request, max_bytes)
        try:
            image = _image(body, request.headers.get("content-type", ""), shape)
            deadline, id = _number(request, "deadline", float), _number(request, "id", int)
            if id is not None and not replay:
                raise ValueError("id is for a server with --replay")
            answer = batcher.submit(image, id=id, deadline=deadline)
        except Full as error:
            raise _Refusal(503, str(error), {"Retry-After": str(math.ceil(error.seconds))}) from error
        except RuntimeError as error:
            raise _Refusal(503, str(error), {"Retry-After": "1"}) from error
        except ValueError as error:
            raise _Refusal(400, " ".join(str(error).split())) from error
        try:
            reply = await asyncio.wrap_future(answer)
        except Exception as error:
            raise _Refusal(500, f"no answer: {type(error).__name__}") from error
        metrics.count(reply)
        return JSONResponse(_told(reply, classes, replay=replay))

    return app


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _Refusal(413, f"needs a body of at most {most} bytes, got more")
    return bytes(body)


def _image(body: bytes, kind: str, shape: tuple[int, int, int]) -> Tensor:
    kind = kind.partition(";")[0].strip().lower()
    if kind in _IMAGE_TYPES:
        return decode_image(body, channels=shape[0], size=shape[1:], name="the body")
    if kind == _RAW:
        if len(body) != 4 * math.prod(shape):
            raise ValueError(f"needs {4 * math.prod(shape)} bytes of float32 for {shape}, got {len(body)}")
        return torch.frombuffer(bytearray(body), dtype=torch.float32).view(shape)
    if kind == "application/json":
        return _from_json(body)
    raise _Refusal(415, f"needs content-type {', '.join(_IMAGE_TYPES)}, {_RAW} or application/json, got {kind!r}")


def _from_json(body: bytes) -> Tensor:
    try:
        return torch.tensor(json.loads(body)["image"], dtype=torch.float32)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'needs JSON such as {{"image": [[[0.5]]]}}, got other: {reason[:200]}') from error


def _number(request: Request, name: str, kind: type[float] | type[int]) -> Any:
    text = request.query_params.get(name)
    try:
        return None if text is None else kind(text)
    except ValueError as error:
        raise ValueError(f"needs {name} as a number, got {text[:50]!r}" if text else f"{name} is empty") from error


def _told(reply: Reply, classes: Sequence[str], *, replay: bool) -> dict[str, Any]:
    probability, label = reply.probabilities.max(0)
    told = {
        "class": classes[int(label)],
        "label": int(label),
        "probability": float(probability),
        "probabilities": reply.probabilities.tolist(),
        "steps": reply.steps,
        "converged": reply.converged,
        "expired": reply.expired,
    }
    return {**told, "id": reply.id} if replay else told
