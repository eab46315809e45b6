"""The page and what it asks for."""

import asyncio
import filecmp
import hashlib
import re
import secrets
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse
from torch import Tensor

from fastdef.assets import ASSETS
from fastdef.data import Dataset, Decoder, load_dataset
from fastdef.defense import ActiveDefense
from fastdef.serving.asking import Service
from fastdef.serving.bodies import Refusal, number, read_image
from fastdef.serving.page.attacks import SECONDS, Attacker
from fastdef.serving.page.look import describe_stages
from fastdef.serving.page.pictures import png

_FILE = Path(__file__).with_name("page.html")
_SAMPLES = 10


@dataclass(frozen=True)
class Page:
    """What the page needs.

    Attributes:
        token: that its link holds, and every request for its data.
        defense: the worker's.
        samples: images to pick from, of the demo; with them come the attacks.
    """

    token: str
    defense: ActiveDefense
    samples: Dataset | None = None

    @classmethod
    def of_file(cls, token: str, defense: ActiveDefense, model: Path) -> "Page":
        """With samples and attacks where ``model`` is the file that ships."""
        shipped = ASSETS / "smoothing.safetensors"
        demo = model.is_file() and filecmp.cmp(model, shipped, shallow=False)
        samples = load_dataset("fashion-mnist", "test", root=ASSETS).take(_SAMPLES) if demo else None
        return cls(token, defense, samples)


def page_routes(service: Service, page: Page, background: str | None) -> APIRouter:
    """``/``, the same for everybody; ``/page/facts``, ``/page/look``, ``/page/attack``, for whoever has the token."""
    router = APIRouter(include_in_schema=False)
    text = _FILE.read_text(encoding="utf-8")
    headers = _headers(text)
    attacker = None if page.samples is None else Attacker(page.defense)
    facts = _facts(service, page)

    @router.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    @router.get("/page/facts")
    async def tell(request: Request) -> JSONResponse:
        _check(request, page.token)
        return JSONResponse(facts, headers=_NOT_STORED)

    @router.post("/page/look")
    async def look(request: Request) -> JSONResponse:
        _check(request, page.token)
        image = await _read(request, service, background)
        (reply,) = await service.ask(request, [image])
        stages = await asyncio.to_thread(describe_stages, page.defense, image, reply, service.classes)
        return JSONResponse(stages, headers=_NOT_STORED)

    @router.post("/page/attack")
    async def attack(request: Request) -> JSONResponse:
        _check(request, page.token)
        if attacker is None:
            raise Refusal(404, "needs the model of the demo, which alone this server attacks")
        image = await _read(request, service, background)
        try:
            label = number(request, "label", int)
            made = await attacker.attack(request.query_params.get("kind", ""), image, label)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        described = {
            "png": png(made.image),
            "change": png(made.change),
            "gradients": made.gradients,
            "seconds": made.seconds,
            "cut": made.cut,
        }
        return JSONResponse(described, headers=_NOT_STORED)

    return router


_NOT_STORED = {"Cache-Control": "no-store"}


def _check(request: Request, token: str) -> None:
    """Before anything is read: a page of another origin, a proxy's public, other users of the machine have none."""
    given = request.headers.get("authorization", "").encode()
    if not secrets.compare_digest(given, f"Bearer {token}".encode()):
        raise Refusal(401, "needs the link to the page that fastdef serve printed", {"WWW-Authenticate": "Bearer"})


async def _read(request: Request, service: Service, background: str | None) -> Tensor:
    try:
        return await read_image(
            request,
            service.shape,
            most=service.max_bytes,
            seconds=service.body_seconds,
            decoder=Decoder(background),
            resize=True,
        )
    except ValueError as error:
        raise Refusal(400, " ".join(str(error).split())) from error


def _facts(service: Service, page: Page) -> dict[str, Any]:
    return {
        "name": service.name,
        "shape": service.shape,
        "names": list(service.classes),
        "max_bytes": service.max_bytes,
        "attack_seconds": SECONDS,
        "samples": [] if page.samples is None else _samples(page.samples),
    }


def _samples(dataset: Dataset) -> list[dict[str, Any]]:
    images, labels = dataset.floats(0, len(dataset)), dataset.labels.tolist()
    return [
        {"png": png(image), "label": label, "class": dataset.classes[label]}
        for image, label in zip(images, labels, strict=True)
    ]


def _headers(text: str) -> dict[str, str]:
    """No script or style but those in the file, and nothing from anywhere else."""
    script, style = (_digest(re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


def _digest(block: "re.Match[str] | None") -> str:
    content = block[1] if block else ""
    return f"'sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
