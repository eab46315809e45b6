"""Do the naive loop and ours end with the same images, on the shipped model and images, in single and double precision?

They differ in rounding alone; in single precision a feature at the mean may get another sign for it, and that shows.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastdef.bench.agreement import agreement
from fastdef.bench.machine import machine
from fastdef.data import load_dataset
from fastdef.demo.run import ASSETS


def main(
    count: int = 128, json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None
) -> None:
    """Print both, and write them as JSON."""
    dataset = load_dataset("fashion-mnist", "test", root=ASSETS).take(count)
    found = {"machine": machine(dataset.images.device)}
    for dtype in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        found[name] = asdict(agreement(ASSETS / "smoothing.safetensors", dataset, dtype=dtype))
        print(name, found[name])
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
