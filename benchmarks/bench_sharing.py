"""How long does an image wait where others take for ever, by how long one may keep a slot that another waits for?

    python -m benchmarks.bench_sharing --json OUT

In one process, no HTTP: twice as many images that take for ever as there are slots are always under way, and one that
gets done comes every few looks at the device. The quantum is in looks; "none" means that a slot is kept to the end.
The floor of the wait is what the image takes where it has the slots to itself ("alone"). The price of a small quantum
is that slots change hands more often: looks a second tell it.
"""

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from fastdef.assets import ASSETS
from fastdef.bench.machine import machine
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense, Request
from fastdef.io import write_json

QUANTA: dict[str, int | None] = {"none": None, "128": 128, "32": 32, "8": 8, "2": 2}
EVERY = 4  # looks between one image that gets done and the next
ENDLESS = 1 << 30  # steps


def waits(defense: ActiveDefense, images: Tensor, *, slow: int, quantum: int | None, seconds: float) -> dict[str, Any]:
    """Seconds from coming to result of each image that gets done, or until now of one that has not; and looks."""
    rough = (torch.arange(28 * 28).view(1, 28, 28) % 2).float()
    endless = Request(torch.zeros_like(rough), max_steps=ENDLESS, noise=1e6 * rough)
    source = itertools.cycle(images)
    came: dict[int, float] = {}
    taken, looks, end = [], 0, time.monotonic() + seconds
    with defense.session(classify_batch=1, quantum=quantum) as session:
        for _ in range(slow):
            session.add(endless)
        while time.monotonic() < end:
            if looks % EVERY == 0:
                came[session.add(Request(next(source)))] = time.monotonic()
            for result in session.step():
                if result.request_id in came:
                    taken.append(time.monotonic() - came.pop(result.request_id))
                else:
                    session.add(endless)
            looks += 1
    taken = sorted(taken + [time.monotonic() - begin for begin in came.values()])
    return {
        "images": len(taken),
        "unanswered": len(came),
        "seconds_median": taken[len(taken) // 2],
        "seconds_p99": taken[int(0.99 * len(taken))],
        "looks_a_second": looks / seconds,
    }


def main(
    model: Path = ASSETS / "smoothing.safetensors",
    slots: int = 16,
    seconds: float = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print a line for each quantum."""
    defense = ActiveDefense.from_checkpoint(load(model), compile=False, slots=slots)
    images = load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, 64)
    rows = {"alone": waits(defense, images, slow=0, quantum=None, seconds=seconds)}
    for name, quantum in QUANTA.items():
        rows[name] = waits(defense, images, slow=2 * slots, quantum=quantum, seconds=seconds)
    for name, row in rows.items():
        print(name, *(f"{key}={value:.4g}" for key, value in row.items()))
    if json_file is not None:
        report = {"slots": slots, "seconds": seconds, "quanta": rows, **machine(torch.device("cpu"))}
        write_json(json_file, report)


if __name__ == "__main__":
    typer.run(main)
