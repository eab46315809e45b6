"""The exported classifier in each engine that is here, against PyTorch, on the same images in one run."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef.bench.machine import interleaved, machine
from fastdef.checkpoint import load
from fastdef.defense import ActiveDefense
from fastdef.export.engine import load_engine
from fastdef.export.opening import CPU

Answer = Callable[[Tensor], object]  # (N, C, H, W) images on the CPU -> whatever the engine answers

CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")


@dataclass(frozen=True)
class Subject:
    """What is run.

    Attributes:
        model: a model file with an Active Defense.
        folder: its export.
        device: PyTorch's; where it is a GPU, the engines run on the first one.
    """

    model: Path
    folder: Path
    device: str


def contenders(subject: Subject) -> dict[str, Callable[[], Answer]]:
    """By name, how each engine is loaded: PyTorch twice, ONNX Runtime twice, TensorRT twice where it has engines."""
    cuda = torch.device(subject.device).type == "cuda"
    providers = CUDA if cuda else CPU

    def pytorch(*, compile: bool) -> Answer:
        return ActiveDefense.from_checkpoint(load(subject.model, device=subject.device), compile=compile).defend

    def engine(providers: tuple[str, ...], *, driven: bool) -> Answer:
        opened = load_engine(subject.folder, providers=providers, driven=driven)
        return lambda images: opened(images.numpy())

    contenders: dict[str, Callable[[], Answer]] = {
        "PyTorch": lambda: pytorch(compile=False),
        "PyTorch, compiled": lambda: pytorch(compile=True),
        "ONNX Runtime, whole": lambda: engine(providers, driven=False),
        "ONNX Runtime, driven": lambda: engine(providers, driven=True),
    }
    if cuda and (subject.folder / "defended.engine").is_file():
        contenders["TensorRT, whole"] = lambda: engine(("TensorRT",), driven=False)
        contenders["TensorRT, driven"] = lambda: engine(("TensorRT",), driven=True)
    return contenders


def bench_engine(
    subject: Subject, images: Tensor, *, batches: tuple[int, ...], turns: int, step: Callable[[str], object]
) -> dict[str, Any]:
    """Latency and rate of each at each batch, time to load, bytes of the files, peak memory of a process of its own.

    Args:
        subject: model and export.
        images: (N, C, H, W) in [0, 1], on the CPU; a batch is its first images.
        batches: sizes.
        turns: timed runs of each.
        step: called with what is about to be done.
    """
    device = torch.device(subject.device)
    rows: dict[str, dict[str, Any]] = {}
    opened: dict[str, Answer] = {}
    for name, open_one in contenders(subject).items():
        step(f"loading {name}")
        begin = time.perf_counter()
        opened[name] = open_one()
        rows[name] = {"load_seconds": time.perf_counter() - begin, "file_bytes": _bytes(subject, name), "batches": {}}
    for batch in batches:
        step(f"batch {batch}")
        given = images[:batch]
        taken = interleaved({name: _call(answer, given) for name, answer in opened.items()}, device, turns=turns)
        for name, seconds in taken.items():
            rows[name]["batches"][batch] = _spread(seconds, batch)
    for name, row in rows.items():
        step(f"memory of {name}")
        # A process each: what one engine has touched would count for the next. Spawned, so that it starts from little.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row["peak_bytes"] = pool.submit(_peak_bytes, subject, name, images[: max(batches)]).result()
    return {"machine": machine(device), "model": subject.model.name, "turns": turns, "engines": rows}


def _call(answer: Answer, images: Tensor) -> Callable[[], object]:
    return lambda: answer(images)


def _spread(seconds: list[float], batch: int) -> dict[str, float]:
    values = torch.tensor(seconds, dtype=torch.float64)
    levels = {f"p{level}": float(values.quantile(level / 100)) for level in (50, 95, 99)}
    return {**levels, "images_per_second": batch / statistics.median(seconds)}


def _bytes(subject: Subject, name: str) -> int:
    """Of the files that the engine loads."""
    if name.startswith("PyTorch"):
        return subject.model.stat().st_size
    stems = ("defended",) if name.endswith("whole") else ("step", "classifier")
    ending = "engine" if name.startswith("TensorRT") else "onnx"
    return sum((subject.folder / f"{stem}.{ending}").stat().st_size for stem in stems)


def _peak_bytes(subject: Subject, name: str, images: Tensor) -> int:
    """Most memory that this process has had, the interpreter and torch included, and on CUDA what torch held there."""
    contenders(subject)[name]()(images)
    # Not getrusage, whose peak a new process inherits from the one that made it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    device = torch.device(subject.device)
    return int(peak.split()[1]) * 1024 + (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
