"""Does a server stay sound under load: nothing lost, nothing mixed up, no memory gained?

    python -m benchmarks.soak --model MODEL --minutes 10 --json OUT

Starts ``fastdef serve --replay``; eight clients ask for the same images under a few ids, one request in a hundred is
malformed, and two attackers send images that were made to take long. Every answer to a known (image, id) is held
against the first one; the server's memory is read every ten seconds.
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
from typing import Annotated

import torch
import typer
from torch import Tensor

from fastdef.assets import ASSETS
from fastdef.attacks import projected_ascent
from fastdef.bench.machine import machine
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense
from fastdef.io import atomic_write
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss

CLIENTS, ATTACKERS, IMAGES, IDS = 8, 2, 32, 4
PORT = 8811
RAW = {"content-type": "application/octet-stream"}


class Load:
    """What the clients send, and what came back."""

    def __init__(self, images: Tensor, slow: Tensor) -> None:
        self.end = 0.0
        self.images = [image.numpy().astype("<f4").tobytes() for image in images]
        self.slow = [image.numpy().astype("<f4").tobytes() for image in slow]
        self.first: dict[tuple[int, int], list[float]] = {}
        self.lock = threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.mixed = 0
        self.seconds: list[float] = []

    def client(self, number: int) -> None:
        """Query until the end."""
        chance = random.Random(number)
        while time.monotonic() < self.end:
            if chance.random() < 0.01:
                status, _ = ask("/classify", b"rubbish")
                self.count("malformed", status)
                continue
            which, id = chance.randrange(len(self.images)), chance.randrange(IDS)
            begin = time.monotonic()
            status, told = ask(f"/classify?id={id}", self.images[which])
            self.count("sound", status)
            if status == 200:
                self.check(which, id, told["probabilities"], time.monotonic() - begin)

    def attacker(self, number: int) -> None:
        """Send what takes long until the end."""
        chance = random.Random(-1 - number)
        while time.monotonic() < self.end:
            status, _ = ask("/classify?id=9", chance.choice(self.slow))
            self.count("slow", status)

    def count(self, kind: str, status: int) -> None:
        """One more answer."""
        with self.lock:
            self.statuses[f"{kind}, {status}"] += 1

    def check(self, which: int, id: int, probabilities: list[float], seconds: float) -> None:
        """The same image under the same id has the same answer, within rounding."""
        with self.lock:
            self.seconds.append(seconds)
            first = self.first.setdefault((which, id), probabilities)
            self.mixed += max(abs(a - b) for a, b in zip(first, probabilities, strict=True)) > 0.05


def ask(path: str, body: bytes) -> tuple[int, dict[str, list[float]]]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    connection.request("POST", path, body, RAW)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


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


def main(
    model: Path = ASSETS / "smoothing.safetensors",
    minutes: float = 10.0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Soak, and say what came of it; status 1 if anything was lost, mixed up or leaked."""
    images = load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, IMAGES)
    load_ = Load(images, slowest(ActiveDefense.from_checkpoint(load(model), compile=False), images[:8]))
    command = [sys.executable, "-m", "fastdef", "serve", str(model), "--port", str(PORT), "--replay", "--seed", "1"]
    with subprocess.Popen([*command, "--no-compile"], stderr=subprocess.DEVNULL) as server:
        wait_for_health()
        load_.end = time.monotonic() + 60 * minutes
        threads = [threading.Thread(target=load_.client, args=(n,)) for n in range(CLIENTS)]
        threads += [threading.Thread(target=load_.attacker, args=(n,)) for n in range(ATTACKERS)]
        for thread in threads:
            thread.start()
        memory = []
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(10.0, 6 * minutes))
            memory.append(megabytes(server.pid))
        server.terminate()
    found = report(load_, memory, minutes)
    print(json.dumps(found, indent=1))
    if json_file is not None:
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(0 if found["sound"] else 1)


def wait_for_health() -> None:
    """Until the server answers."""
    for _ in range(1200):
        if healthy():
            return
        time.sleep(0.1)
    raise SystemExit("soak needs a server that comes up within two minutes, and it did not")


def healthy() -> bool:
    """Whether it answers now."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def report(load_: Load, memory: list[float], minutes: float) -> dict[str, object]:
    """What happened, and whether it is sound: every answer 200 or 400 as it should be, none mixed up, memory flat."""
    warm = memory[len(memory) // 4 :] or memory
    grown = statistics.mean(warm[-max(1, len(warm) // 4) :]) / statistics.mean(warm[: max(1, len(warm) // 4)]) - 1
    good = {"sound, 200", "slow, 200", "malformed, 400"}
    ordered = sorted(load_.seconds)
    return {
        "minutes": minutes,
        "answers": dict(load_.statuses),
        "mixed_up": load_.mixed,
        "seconds_median": ordered[len(ordered) // 2] if ordered else None,
        "seconds_p99": ordered[int(0.99 * len(ordered))] if ordered else None,
        "megabytes": [round(value, 1) for value in memory],
        "memory_grown": grown,
        "sound": set(load_.statuses) <= good and not load_.mixed and grown < 0.05,
        **machine(torch.device("cpu")),
    }


if __name__ == "__main__":
    typer.run(main)
