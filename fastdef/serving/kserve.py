"""The Open Inference Protocol, version 2, that KServe and Triton speak: health, metadata and inference by JSON."""

import asyncio
import json
import math
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from torch import Tensor

from fastdef._version import VERSION
from fastdef.serving.asking import Service
from fastdef.serving.bodies import Refusal, read_body

_INPUT = "images"


def kserve(service: Service) -> APIRouter:
    """``/v2`` and all below it: one model, its input ``images`` (N, C, H, W) FP32 in [0, 1].

    Outputs are ``probabilities`` (N, classes) FP32, ``steps`` (N,) INT32 and ``converged`` (N,) BOOL; a deadline in
    seconds may stand in the request's parameters.
    """
    router = APIRouter(prefix="/v2", tags=["KServe v2"])

    def check(name: str) -> None:
        if name != service.name:
            raise Refusal(404, f"needs the model {service.name!r}, got {name[:100]!r}")

    @router.get("")
    async def server() -> JSONResponse:
        return JSONResponse({"name": "fastdef", "version": VERSION, "extensions": []})

    @router.get("/health/live")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @router.get("/health/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.worker.alive}, 200 if service.worker.alive else 503)

    @router.get("/models/{name}/ready")
    async def model_ready(name: str) -> JSONResponse:
        check(name)
        return JSONResponse({"name": name, "ready": service.worker.alive}, 200 if service.worker.alive else 503)

    @router.get("/models/{name}")
    async def metadata(name: str) -> JSONResponse:
        check(name)
        classes = len(service.classes)
        outputs = [("probabilities", "FP32", [-1, classes]), ("steps", "INT32", [-1]), ("converged", "BOOL", [-1])]
        return JSONResponse(
            {
                "name": name,
                "platform": "fastdef",
                "inputs": [{"name": _INPUT, "datatype": "FP32", "shape": [-1, *service.shape]}],
                "outputs": [{"name": o, "datatype": kind, "shape": shape} for o, kind, shape in outputs],
            }
        )

    @router.post("/models/{name}/infer")
    async def infer(name: str, request: Request) -> JSONResponse:
        check(name)
        body = await read_body(request, most=service.max_bytes, seconds=service.body_seconds)
        try:
            id, images, deadline = await asyncio.to_thread(_parse, body, service.shape)
        except ValueError as error:
            raise Refusal(400, " ".join(str(error).split())) from error
        replies = await service.ask(request, list(images), deadline=deadline)
        probabilities = torch.stack([reply.probabilities for reply in replies])
        outputs = [
            _output("probabilities", "FP32", list(probabilities.shape), probabilities.flatten().tolist()),
            _output("steps", "INT32", [len(replies)], [reply.steps for reply in replies]),
            _output("converged", "BOOL", [len(replies)], [reply.converged for reply in replies]),
        ]
        return JSONResponse({"model_name": name, "outputs": outputs} | ({} if id is None else {"id": id}))

    return router


def _parse(body: bytes, shape: tuple[int, int, int]) -> tuple[str | None, Tensor, float | None]:
    """Id, images and deadline of an inference request.

    Raises:
        ValueError: for what is none.
    """
    try:
        request = json.loads(body)
        (given,) = request["inputs"]
        sizes, kind = [int(size) for size in given["shape"]], given["datatype"]
        values = torch.tensor(given["data"], dtype=torch.float32).flatten()
        deadline = request.get("parameters", {}).get("deadline")
        deadline = None if deadline is None else float(deadline)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"needs an inference request with one input {_INPUT!r}, got other: {reason[:200]}") from error
    if given.get("name") != _INPUT or kind != "FP32" or tuple(sizes[1:]) != shape or len(values) != math.prod(sizes):
        needed = f"{_INPUT!r} of FP32 and shape [N, {', '.join(map(str, shape))}]"
        raise ValueError(f"needs {needed}, got {given.get('name')!r}, {kind}, {sizes} and {len(values)} values")
    return request.get("id"), values.view(sizes), deadline


def _output(name: str, kind: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": shape, "data": data}
