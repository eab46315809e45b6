"""One truth for every back end: what the shipped models answer on shipped images, in double precision.

    python -m tools.references            # holds the stored answers against the loop of today
    python -m tools.references --write    # computes and stores them

The defended model's are those of the naive loop, which shares no code with what is held against them but the model. In
double precision two programs agree far within 1e-5 (``python -m benchmarks.agreement``), so the file does not depend on
the machine. ``tests/test_references.py`` holds every back end against it.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import fastdef
from benchmarks.programs import Subject, naive
from fastdef.assets import ASSETS
from fastdef.bench.machine import machine
from fastdef.checkpoint import Checkpoint, load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense
from fastdef.io import atomic_write

FILE = Path(__file__).parents[1] / "tests" / "references.safetensors"
COUNT, SEED = 24, 7
MAX_STEPS = 64  # an image may take: enough for most, and some are cut off


def shipped(count: int = COUNT) -> Tensor:
    """The first test images, float32."""
    return load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, count)


def subject() -> Checkpoint:
    """The shipped model with an Active Defense of at most ``MAX_STEPS`` steps."""
    checkpoint = load(ASSETS / "smoothing.safetensors")
    checkpoint.defense["max_steps"] = MAX_STEPS
    return checkpoint


@torch.no_grad()
def references() -> dict[str, Tensor]:
    """The answers, by name; those of the defended model without a prefix."""
    images = shipped()
    defense = ActiveDefense.from_checkpoint(subject(), seed=SEED, compile=False)
    with torch.enable_grad():
        ends = naive(Subject(defense, images), torch.float64, batch=COUNT)
    model = subject().model.double()
    found = {
        "images": ends.images.float(),
        "steps": ends.steps.int(),
        "loss": ends.loss,
        "probabilities": model(ends.images).softmax(1),
        "undefended.probabilities": model(images.double()).softmax(1),
    }
    for name in ("afa", "surrogate"):
        other = load(ASSETS / f"{name}.safetensors").model.double()
        found[f"{name}.probabilities"] = other(images.double()).softmax(1)
    return found


def stored() -> dict[str, Tensor]:
    """What the file has."""
    with safe_open(FILE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary


def main(
    write: Annotated[bool, typer.Option("--write", help="store them, in place of holding them against")] = False,
) -> None:
    """Compute the answers, and store or compare them."""
    found = references()
    if not write:
        for name, expected in stored().items():
            apart = float((found[name].double() - expected.double()).abs().max())
            print(f"{name:26s} {apart:.1e} apart")
        return
    told = {
        "command": "python -m tools.references --write",
        "versions": {"fastdef": fastdef.__version__, "torch": torch.__version__},
        "machine": machine(torch.device("cpu")),
        "data": f"fashion-mnist test, images 0 to {COUNT - 1}, ids alike",
        "seed": SEED,
        "max_steps": MAX_STEPS,
    }
    with atomic_write(FILE) as temporary:
        temporary.write_bytes(save(found, metadata={name: json.dumps(value) for name, value in told.items()}))
    print(f"wrote {FILE} ({FILE.stat().st_size / 2**10:.0f} KiB)")


if __name__ == "__main__":
    typer.run(main)
