"""Large images: memory and rate of a step of the defense beside plain autograd up to the layer, in one run.

    python -m benchmarks.large_images --json OUT

Networks of timm with random weights and 1,000 classes, images of 224 x 224. Each contender runs in a process of its
own, in turn, twice; memory is what the process's peak grows by from a forward of the whole network on one image.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.architectures import plain
from fastdef.bench.machine import machine
from fastdef.defense import ActiveDefense
from fastdef.io import write_json

NETWORKS = {"resnet50": "layer1", "convnext_tiny": "stages.0"}
BATCH = 16
CONTENDERS = ("plain autograd, 16 at once", "plain autograd, one by one", "traced", "compiled")


def network(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """With random weights, and a batch of images for it."""
    from tests.timm_import import import_timm  # beside a torch without its torchvision too

    torch.manual_seed(0)
    return import_timm().create_model(name, pretrained=False).eval(), torch.rand(BATCH, 3, size, size)


def step(contender: str, model: nn.Module, layer: str, images: Tensor) -> Callable[[], object]:
    """What advances every image by one step."""
    if contender.startswith("plain"):
        losses, parts = plain(model, layer), images.split(len(images) if "at once" in contender else 1)
        return lambda: [losses(part) for part in parts]
    defense = ActiveDefense(model, layer, delta=1e-30, beta=1.0, slots=BATCH, compile=contender == "compiled")
    slots = defense.empty_slots(BATCH, images[0])
    counts = torch.zeros(BATCH, dtype=torch.int32)
    slots.insert(list(range(BATCH)), list(range(BATCH)), images, counts, counts + (1 << 30))
    return slots.advance


def measure(name: str, contender: str, size: int, turns: int) -> dict[str, float]:
    """In this process: images a second, and MiB that the peak grows by."""
    model, images = network(name, size)
    with torch.no_grad():
        model(images[:1])
    before = _peak()
    run = step(contender, model, NETWORKS[name], images)
    made, seconds = _peak(), []
    for _ in range(turns):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    rate = BATCH / statistics.median(seconds)
    return {"images_per_second": rate, "mib": _peak() - before, "mib_of_making": made - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    size: int = 224,
    turns: int = 5,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """A row for each network and contender."""
    if child is not None:
        name, _, contender = child.partition(":")
        print(json.dumps(measure(name, contender, size, turns)))
        return
    rows: dict[str, Any] = {}
    for name in NETWORKS:
        runs: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(2):
            for contender in CONTENDERS:
                command = [sys.executable, "-m", "benchmarks.large_images", "--child", f"{name}:{contender}"]
                options = ["--size", str(size), "--turns", str(turns)]
                ended = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
                runs[contender].append(json.loads(ended.stdout.splitlines()[-1]))
        rows[name] = {
            contender: {key: statistics.mean(run[key] for run in told) for key in told[0]}
            for contender, told in runs.items()
        }
        for contender, row in rows[name].items():
            print(f"{name}, {contender}: {row['images_per_second']:.2f} images/s, {row['mib']:.0f} MiB", flush=True)
    if json_file is not None:
        where = {"machine": machine(torch.device("cpu")), "size": size, "batch": BATCH, "classes": 1000}
        write_json(json_file, {**where, "networks": rows})


if __name__ == "__main__":
    typer.run(main)
