"""What does Ray Serve cost beside ``fastdef serve``, and what do two replicas give? One run, door after door.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_replicas --json OUT

Clients on this machine send raw images, each on a connection that it keeps, and share its cores with the server. A
request that is refused for its length goes the whole way but through the defense: what that way takes at most.
"""

import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from fastdef.assets import ASSETS
from fastdef.bench.machine import machine
from fastdef.data import load_dataset
from fastdef.io import write_json
from fastdef.serving.ledger import merge

CLIENTS, IMAGES, REPLICAS = 8, 256, 100
DOORS = {  # options of the command, and processes that answer
    "fastdef serve": ([], 1),
    "fastdef serve --workers 2": (["--workers", "2"], 2),
    "one replica": (["--replicas", "1"], 1),
    "two replicas": (["--replicas", "2"], 2),
}
READY = ("Application startup complete", "is ready at")  # a line for each worker, or one for all replicas
ANSWERS = {"classified": 200, "refused": 400}
START_SECONDS = 300


def main(
    model: Path = ASSETS / "smoothing.safetensors",
    images: Annotated[int, typer.Option(min=16, help="that all clients together send in a measurement")] = 1024,
    turns: Annotated[int, typer.Option(min=1, help="through all doors")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure every door in turn, and print a line for each."""
    busy = os.getloadavg()[0]  # of others, whose share of the cores is in every figure
    bodies = [image.numpy().astype("<f4").tobytes() for image in _images()]
    found: dict[str, list[dict[str, float]]] = {door: [] for door in DOORS}
    for _ in range(turns):
        for door, (options, processes) in DOORS.items():
            with serving(model, options, processes) as port:
                found[door].append(measured(port, bodies, images))
    doors = {door: _medians(turns_of) for door, turns_of in found.items()}
    for door, row in doors.items():
        print(f"{door:28} " + "  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if json_file is not None:
        about: dict[str, object] = {
            "model": model.name,
            "clients": CLIENTS,
            "images": images,
            "turns": turns,
            "cores": os.cpu_count(),
        }
        about |= {"load_average": busy, "ledger_ms": ledger_ms()}
        write_json(json_file, {**about, "doors": doors, "by_turn": found, "machine": machine(torch.device("cpu"))})


def measured(port: int, bodies: list[bytes], images: int) -> dict[str, float]:
    """Rates and latencies of a server that is up; every answer is the one that was to come."""
    load(port, bodies, CLIENTS, images // 4, ANSWERS["classified"])  # warm
    alone, _ = load(port, bodies, 1, images // 16, ANSWERS["classified"])
    together, seconds = load(port, bodies, CLIENTS, images, ANSWERS["classified"])
    refused, refusing = load(port, [b"x"], CLIENTS, images, ANSWERS["refused"])
    return {
        "images_per_second": len(together) / seconds,
        "p50_ms": 1e3 * statistics.median(together),
        "p99_ms": 1e3 * sorted(together)[int(0.99 * len(together))],
        "alone_p50_ms": 1e3 * statistics.median(alone),
        "refused_per_second": len(refused) / refusing,
    }


def load(port: int, bodies: list[bytes], clients: int, requests: int, status: int) -> tuple[list[float], float]:
    """Seconds of each answer, and of all, to clients who each wait for one before they ask again."""
    taken: list[float] = []
    wrong: list[int] = []
    numbers = iter(range(requests))

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for number in numbers:  # the next that no other client has
            begin = time.monotonic()
            connection.request("POST", "/classify", bodies[number % len(bodies)], _RAW)
            answer = connection.getresponse()
            answer.read()
            taken.append(time.monotonic() - begin)
            if answer.status != status:
                wrong.append(answer.status)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong or len(taken) != requests:
        raise SystemExit(f"bench_replicas needs {status} from everybody, got {wrong[:3]} and {len(taken)} answers")
    return taken, time.monotonic() - begin


_RAW = {"content-type": "application/octet-stream"}


def ledger_ms() -> float:
    """Milliseconds in which the metrics of ``REPLICAS`` replicas become one."""
    registry = CollectorRegistry()
    for name in "abcdefgh":
        Counter(name, "as many as a replica has", registry=registry).inc()
    Histogram("seconds", "and one of those", registry=registry).observe(0.1)
    text = generate_latest(registry)
    begin = time.perf_counter()
    merge([(text, True)] * REPLICAS)
    return 1e3 * (time.perf_counter() - begin)


@contextmanager
def serving(model: Path, options: list[str], processes: int) -> Iterator[int]:
    """A server of so many processes; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fastdef", "serve", str(model), "--port", str(port), "--no-compile", *options]
    with tempfile.NamedTemporaryFile("w+") as log:
        server = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log)
        try:
            lines = 1 if "--replicas" in options else processes
            _wait(server, Path(log.name), lines)
            yield port
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def _wait(server: "subprocess.Popen[bytes]", log: Path, lines: int) -> None:
    end = time.monotonic() + START_SECONDS
    while sum(log.read_text().count(ready) for ready in READY) < lines:
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"bench_replicas needs a server that comes up: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _images() -> torch.Tensor:
    return load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, IMAGES)


def _medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


if __name__ == "__main__":
    typer.run(main)
