"""Clients that harm a server on this machine: slow images, hang-ups, half bodies, silence, huge files."""

import http.client
import io
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

from PIL import Image
from torch import Tensor

RAW = {"content-type": "application/octet-stream"}
SILENT = 600  # connections that say nothing, held at a time
PAUSE = 0.05  # seconds between one and the next of a kind


def threads(port: int, slow: Tensor, *, until: float) -> tuple[list[threading.Thread], Counter[str]]:
    """One thread of each kind, two of the slow images, that end ``until``; and a count of what they have done."""
    sent: Counter[str] = Counter()
    huge = _huge()
    bodies = [image.numpy().astype("<f4").tobytes() for image in slow]
    acts: dict[str, Callable[[], object]] = {
        "slow image": lambda: _ask(port, random.choice(bodies)),
        "slow image, too": lambda: _ask(port, random.choice(bodies)),
        "hang-up": lambda: _send(port, bodies[0], length=len(bodies[0])).close(),
        "half a body": lambda: _hold([_send(port, bodies[0][:100], length=len(bodies[0]))], 1.0),
        "silent connections": lambda: _hold([_send(port) for _ in range(SILENT)], 5.0),
        "huge picture": lambda: _ask(port, huge, "image/png"),
    }

    def repeat(name: str, act: Callable[[], object]) -> None:
        while time.monotonic() < until:
            try:
                sent[f"{name}, {act() or 'done'}"] += 1
            except (OSError, http.client.HTTPException) as error:
                sent[f"{name}, {type(error).__name__}"] += 1
            time.sleep(PAUSE)

    return [threading.Thread(target=repeat, args=given) for given in acts.items()], sent


def _ask(port: int, body: bytes, kind: str = RAW["content-type"]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/classify", body, {"content-type": kind})
        return connection.getresponse().status
    finally:
        connection.close()


def _send(port: int, body: bytes = b"", length: int = 0) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    if length:
        head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: {RAW['content-type']}\r\ncontent-length: {length}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
    return connection


def _hold(connections: list[socket.socket], seconds: float) -> None:
    time.sleep(seconds)
    for connection in connections:
        connection.close()


def _huge() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8192, 8192)).save(file, "PNG")
    return file.getvalue()
