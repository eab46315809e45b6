"""How fast is the classifier that stands behind the loop in bfloat16, beside OpenVINO's?

    python -m benchmarks.bench_classifier --json OUT

The shipped model and one with random weights, medians of interleaved turns in one run. "Decided alike": the share of
images whose class is PyTorch's in float32.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn

from fastdef.assets import ASSETS
from fastdef.bench.machine import interleaved, machine
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.io import write_json
from fastdef.nn import build, parse_architecture
from fastdef.runtime.classifier import reduced_classifier

Answer = Callable[[Tensor], Tensor]


def ways(model: nn.Module, images: Tensor) -> dict[str, Answer]:
    """The classifier by PyTorch, by ours and by OpenVINO in both precisions."""
    reduced = reduced_classifier(model, images, dtype=torch.bfloat16, compile=True)
    openvino = {f"OpenVINO, {name}": _openvino(model, images, hint) for name, hint in _HINTS.items()}
    return {"PyTorch, float32": model, "fastdef, bfloat16": reduced, **openvino}


_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def _openvino(model: nn.Module, images: Tensor, hint: str) -> Answer:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    converted = openvino.convert_model(torch.export.export(model, (images,)))
    compiled = openvino.Core().compile_model(converted, "CPU", options)
    return lambda given: torch.from_numpy(np.asarray(compiled([given.numpy()])[0]))


def measure(model: nn.Module, images: Tensor, *, turns: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a batch and the share that is decided alike, by way."""
    by = ways(model, images)
    decided = {name: answer(images).argmax(1) for name, answer in by.items()}
    calls = {name: lambda answer=answer: answer(images) for name, answer in by.items()}
    taken = interleaved(calls, images.device, turns=turns)
    first = next(iter(decided.values()))
    return {
        name: {"ms": 1e3 * statistics.median(taken[name]), "alike": float((decided[name] == first).float().mean())}
        for name in by
    }


def main(batch: int = 64, turns: int = 25, json_file: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Print, and write JSON if asked."""
    torch.manual_seed(0)
    shipped = load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, batch)
    subjects = {
        "WRN-10-2, shipped": (load(ASSETS / "smoothing.safetensors").model, shipped),
        "WRN-16-4, random": (build(parse_architecture("wrn-16-4", in_channels=3)).eval(), torch.rand(batch, 3, 32, 32)),
    }
    rows: dict[str, Any] = {}
    with torch.no_grad():
        for name, (model, images) in subjects.items():
            rows[name] = measure(model, images, turns=turns)
            for way, row in rows[name].items():
                print(f"{name}, {way}: {row['ms']:.1f} ms, {row['alike']:.0%} decided alike", flush=True)
    if json_file is not None:
        write_json(json_file, {**machine(torch.device("cpu")), "batch": batch, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
