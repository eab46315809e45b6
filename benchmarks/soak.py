"""Does a server stay sound under load: nothing lost, nothing mixed up, nobody undefended, no memory gained?

    python -m benchmarks.soak --model MODEL --minutes 10 --json OUT

Starts ``fastdef serve --replay``. Eight polite clients ask for the same images under a few ids, one request in a
hundred is malformed; every answer to a known (image, id) is held against the first one. For the first half of the time
they are alone; in the second half come those of :mod:`benchmarks.soak_attackers`. The server's memory is read every
ten seconds.
"""

import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks import soak_attackers
from fastdef.assets import ASSETS
from fastdef.attacks import projected_ascent
from fastdef.bench.machine import machine
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense
from fastdef.io import write_json
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss

CLIENTS, IMAGES, IDS = 8, 32, 4
PORT = 8811
RAW = {"content-type": "application/octet-stream"}
GOOD = {"polite, 200", "malformed, 400"}  # of the polite clients, who are never too many


class Polite:
    """What the polite clients send, and what came back."""

    def __init__(self, images: Tensor) -> None:
        self.end = 0.0
        self.images = [image.numpy().astype("<f4").tobytes() for image in images]
        self.first: dict[tuple[int, int], list[float]] = {}
        self.lock = threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.mixed = self.undefended = 0
        self.seconds: list[float] = []

    def client(self, number: int) -> None:
        """Query until the end."""
        chance = random.Random(number)
        while time.monotonic() < self.end:
            if chance.random() < 0.01:
                self.count("malformed", ask("/classify", b"rubbish")[0])
                continue
            which, id = chance.randrange(len(self.images)), chance.randrange(IDS)
            begin = time.monotonic()
            status, answer = ask(f"/classify?id={id}", self.images[which])
            self.count("polite", status)
            if status == 200:
                self.check(which, id, answer, time.monotonic() - begin)

    def count(self, kind: str, status: int | str) -> None:
        """One more answer."""
        with self.lock:
            self.statuses[f"{kind}, {status}"] += 1

    def check(self, which: int, id: int, answer: dict[str, Any], seconds: float) -> None:
        """The same image under the same id has the same answer, within rounding, and was smoothed to the end."""
        probabilities = answer["probabilities"]
        with self.lock:
            self.seconds.append(seconds)
            self.undefended += not answer["converged"]
            first = self.first.setdefault((which, id), probabilities)
            self.mixed += max(abs(a - b) for a, b in zip(first, probabilities, strict=True)) > 0.05


def ask(path: str, body: bytes) -> tuple[int | str, dict[str, Any]]:
    """One request on a connection of its own; the name of what went wrong where there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    try:
        connection.request("POST", path, body, RAW)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, {}
    finally:
        connection.close()


def slowest(defense: ActiveDefense, images: Tensor) -> Tensor:
    """Images within 8/255 whose features are as rough as can be."""
    network = prefix(defense.model, defense.layer)
    return projected_ascent(
        lambda x: smoothing_loss(network(x)), images, eps=8 / 255, step=1 / 255, steps=20, start=images
    )


def megabytes(process: int) -> float:
    """Resident memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def phase(polite: Polite, process: int, minutes: float, others: list[threading.Thread]) -> dict[str, Any]:
    """So many minutes of the polite clients beside others; what the polite ones saw, and the server's memory."""
    polite.end = time.monotonic() + 60 * minutes
    polite.seconds.clear()
    polite.statuses.clear()
    threads = [threading.Thread(target=polite.client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads + others:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(10.0, 6 * minutes))
        memory.append(round(megabytes(process), 1))
    ordered = sorted(polite.seconds) or [float("nan")]
    return {
        "answers": dict(polite.statuses),
        "seconds_median": ordered[len(ordered) // 2],
        "seconds_p99": ordered[int(0.99 * len(ordered))],
        "megabytes": memory,
    }


def growth(memory: list[float]) -> float:
    """The last quarter's mean over the first's, of what was read once the server was warm, less one."""
    warm = memory[len(memory) // 4 :] or memory
    part = max(1, len(warm) // 4)
    return statistics.mean(warm[-part:]) / statistics.mean(warm[:part]) - 1


def main(
    model: Path = ASSETS / "smoothing.safetensors",
    minutes: float = 10.0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Soak, and say what came of it; status 1 if anything was lost, mixed up, undefended or leaked."""
    images = load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, IMAGES)
    slow = slowest(ActiveDefense.from_checkpoint(load(model), compile=False), images[:8])
    polite = Polite(images)
    command = [sys.executable, "-m", "fastdef", "serve", str(model), "--port", str(PORT), "--replay", "--seed", "1"]
    with subprocess.Popen([*command, "--no-compile"], stderr=subprocess.DEVNULL) as server:
        wait_for_health()
        alone = phase(polite, server.pid, minutes / 2, [])
        attackers, sent = soak_attackers.threads(PORT, slow, until=time.monotonic() + 30 * minutes)
        beside = phase(polite, server.pid, minutes / 2, attackers)
        for attacker in attackers:
            attacker.join()
        server.terminate()
    grown = growth(alone["megabytes"] + beside["megabytes"])
    kept = set(alone["answers"]) | set(beside["answers"]) <= GOOD
    report = {
        "minutes": minutes,
        "alone": alone,
        "beside_attackers": beside,
        "attackers": dict(sent),
        "mixed_up": polite.mixed,
        "undefended": polite.undefended,
        "memory_grown": grown,
        "sound": kept and not polite.mixed and not polite.undefended and grown < 0.05,
        **machine(torch.device("cpu")),
    }
    print(json.dumps(report, indent=1))
    if json_file is not None:
        write_json(json_file, report)
    raise SystemExit(0 if report["sound"] else 1)


def wait_for_health() -> None:
    """Until the server answers."""
    for _ in range(1200):
        if healthy():
            return
        time.sleep(0.1)
    raise SystemExit("soak needs a server that comes up within two minutes, and it did not")


def healthy() -> bool:
    """Whether it answers now."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    typer.run(main)
