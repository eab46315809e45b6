"""What comes in a request: read within bounds of size and time, and made an image off the event loop."""

import asyncio
import json
import math
from typing import Any

import torch
from fastapi import Request
from starlette.requests import ClientDisconnect
from torch import Tensor

from fastdef.data import Decoder, decode_image

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/x-portable-anymap")
_RAW = "application/octet-stream"
_FORM = "multipart/form-data"


class Refusal(Exception):
    """A request that is not answered: HTTP status, one line, and headers."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


async def read_body(request: Request, *, most: int, seconds: float) -> bytes:
    """The body, of at most so many bytes, within so many seconds.

    Raises:
        Refusal: 413 before a byte is read where its length is announced, else at the byte that is too much; 408.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(most, int(announced))
    try:
        return await asyncio.wait_for(_read(request, most), seconds)
    except ClientDisconnect as error:
        raise Refusal(499, "the client left") from error
    except asyncio.TimeoutError as error:
        reason = f"needs a body within {seconds:g} s, got a part of it"
        raise Refusal(408, reason, {"Connection": "close"}) from error


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_large(most, len(body))
    return bytes(body)


def _too_large(most: int, got: int) -> Refusal:
    return Refusal(413, f"needs a body of at most {most} bytes, got {got}", {"Connection": "close"})


async def read_image(
    request: Request, shape: tuple[int, int, int], *, most: int, seconds: float, decoder: Decoder, resize: bool = False
) -> Tensor:
    """The image of a request, (C, H, W) float32: an image file, raw float32, JSON, or a form with one file.

    Raises:
        ValueError: for what is none.
        Refusal: 408, 413, and 415 for another content-type.
    """
    body = await read_body(request, most=most, seconds=seconds)
    kind = request.headers.get("content-type", "")
    if kind.startswith(_FORM):
        body, kind = await _file_of_form(request, body)
    return await asyncio.to_thread(_image, body, kind, shape, decoder, resize)


async def _file_of_form(request: Request, body: bytes) -> tuple[bytes, str]:
    """Content and content-type of the one file in a form that was read whole."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def chunks() -> Any:
        yield body
        yield b""

    try:
        form = await MultiPartParser(request.headers, chunks(), max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise ValueError(f"needs a form with one file: {error.message}") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise ValueError(f"needs a form with one file, got {len(files)}")
        return await files[0].read(), files[0].content_type or ""
    finally:
        await form.close()


def _image(body: bytes, kind: str, shape: tuple[int, int, int], decoder: Decoder, resize: bool) -> Tensor:
    kind = kind.partition(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        size = shape[1], shape[2]
        return decode_image(body, channels=shape[0], size=size, resize=resize, name="the body", decoder=decoder)
    if kind == _RAW:
        if len(body) != 4 * math.prod(shape):
            raise ValueError(f"needs {4 * math.prod(shape)} bytes of float32 for {shape}, got {len(body)}")
        return torch.frombuffer(bytearray(body), dtype=torch.float32).view(shape)
    if kind == "application/json":
        return _from_json(body)
    needed = f"{', '.join(IMAGE_TYPES)}, {_RAW}, application/json or {_FORM}"
    raise Refusal(415, f"needs content-type {needed}, got {kind[:100]!r}")


def _from_json(body: bytes) -> Tensor:
    try:
        return torch.tensor(json.loads(body)["image"], dtype=torch.float32)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'needs JSON such as {{"image": [[[0.5]]]}}, got other: {reason[:200]}') from error


def number(request: Request, name: str, kind: type[float] | type[int]) -> Any:
    """A number of the query, None where it is not given.

    Raises:
        ValueError: for what is none.
    """
    text = request.query_params.get(name)
    try:
        return None if text is None else kind(text)
    except ValueError as error:
        raise ValueError(f"needs {name} as a number, got {text[:50]!r}" if text else f"{name} is empty") from error
