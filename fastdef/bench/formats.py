"""The exported classifier in each format and engine that is here, against PyTorch, on the same images in one run."""

import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
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
from fastdef.export.manifest import MASKED
from fastdef.export.opening import CPU, file_for
from fastdef.export.sessions import Provider
from fastdef.export.verify import ENGINES

Answer = Callable[[Tensor], tuple[Tensor, Tensor]]  # (N, C, H, W) images on the CPU -> (N,) steps and classes

CUDA: Sequence[Provider] = ("CUDAExecutionProvider", "CPUExecutionProvider")
PYTORCH = "PyTorch"


@dataclass(frozen=True)
class Subject:
    """What is run.

    Attributes:
        model: a model file with an Active Defense.
        folder: its export, in the formats to compare.
        device: PyTorch's; where it is a GPU, the engines run on the first one.
    """

    model: Path
    folder: Path
    device: str


@dataclass(frozen=True)
class Contender:
    """One way to run it.

    Attributes:
        files: it loads.
        open: loads them, and for an engine asks for the known answers.
    """

    files: list[Path]
    open: Callable[[], Answer]


def contenders(subject: Subject, *, lockstep: bool = False) -> dict[str, Contender]:
    """By name, those that the folder has files for and this machine a package.

    Args:
        subject: see there.
        lockstep: also ``defended.masked.onnx``, whose loop steps the whole batch to the end.
    """
    on_cuda = torch.device(subject.device).type == "cuda"
    onnxruntime = CUDA if on_cuda else CPU
    engines: dict[str, Sequence[Provider]] = {"ONNX Runtime": onnxruntime}
    if on_cuda:
        engines["TensorRT"] = ENGINES["tensorrt"]
    else:
        engines |= {"AOTInductor": ENGINES["pt2"]}
        if importlib.util.find_spec("openvino"):
            engines |= {"OpenVINO": ENGINES["openvino"], "OpenVINO in bfloat16": ENGINES["openvino-bf16"]}
    found = {
        PYTORCH: _pytorch(subject, compile=False),
        f"{PYTORCH}, compiled": _pytorch(subject, compile=True),
    }
    for name, providers in engines.items():
        for form, driven in (("whole", False), ("driven", True)):
            contender = _engine(subject.folder, providers, driven=driven)
            if all(file.is_file() for file in contender.files):
                found[f"{name}, {form}"] = contender
    if lockstep:
        masked = subject.folder / f"defended{MASKED}"
        found["ONNX Runtime, whole, in lockstep"] = Contender([masked], lambda: _answer(masked, onnxruntime))
    return found


def _pytorch(subject: Subject, *, compile: bool) -> Contender:
    def open_() -> Answer:
        defense = ActiveDefense.from_checkpoint(load(subject.model, device=subject.device), compile=compile)

        def answer(images: Tensor) -> tuple[Tensor, Tensor]:
            result = defense.defend(images)
            return result.steps.cpu(), result.logits.argmax(1).cpu()

        return answer

    return Contender([subject.model], open_)


def _engine(folder: Path, providers: Sequence[Provider], *, driven: bool) -> Contender:
    stems = ("step", "classifier") if driven else ("defended",)
    files = [file_for(folder, stem, providers) for stem in stems]
    return Contender(files, lambda: _answer(folder, providers, driven=driven))


def _answer(path: Path, providers: Sequence[Provider], *, driven: bool = False) -> Answer:
    engine = load_engine(path, providers=providers, driven=driven)

    def answer(images: Tensor) -> tuple[Tensor, Tensor]:
        result = engine(images.numpy())
        return torch.from_numpy(result.steps), torch.from_numpy(result.probabilities).argmax(1)

    return answer


def bench_formats(
    subject: Subject,
    images: Tensor,
    *,
    batches: tuple[int, ...],
    turns: int,
    step: Callable[[str], object],
    lockstep: bool = False,
) -> dict[str, Any]:
    """Latency and rate at each batch, time to load, bytes of the files, peak memory of a process of its own, agreement.

    An engine that does not give the known answers has its refusal in place of figures.

    Args:
        subject: model and export.
        images: (N, C, H, W) in [0, 1], on the CPU; a batch is its first images.
        batches: sizes.
        turns: timed runs of each.
        step: called with what is about to be done.
        lockstep: see :func:`contenders`.
    """
    device = torch.device(subject.device)
    found = contenders(subject, lockstep=lockstep)
    rows, opened = _open(found, step)
    for batch in batches:
        step(f"batch {batch}")
        given = images[:batch]
        taken = interleaved({name: _call(answer, given) for name, answer in opened.items()}, device, turns=turns)
        for name, seconds in taken.items():
            rows[name]["batches"][batch] = _spread(seconds, batch)
    step("agreement")
    for name, agreement in _agreement(opened, images[: max(batches)]).items():
        rows[name] |= agreement
    opened.clear()
    for name in [name for name, row in rows.items() if "refused" not in row]:
        step(f"memory of {name}")
        # A process each: what one engine has touched would count for the next. Spawned, so that it starts from little.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            given = images[: max(batches)]
            rows[name]["peak_bytes"] = pool.submit(_peak_bytes, subject, name, given, lockstep).result()
    return {"machine": machine(device), "model": subject.model.name, "turns": turns, "formats": rows}


def _open(found: dict[str, Contender], step: Callable[[str], object]) -> tuple[dict[str, Any], dict[str, Answer]]:
    rows: dict[str, Any] = {}
    opened: dict[str, Answer] = {}
    for name, contender in found.items():
        step(f"loading {name}")
        rows[name] = {"file_bytes": sum(_bytes(file) for file in contender.files), "batches": {}}
        begin = time.perf_counter()
        try:
            opened[name] = contender.open()
        except ValueError as error:
            rows[name]["refused"] = str(error)
        rows[name]["load_seconds"] = time.perf_counter() - begin
    return rows, opened


def _agreement(opened: dict[str, Answer], images: Tensor) -> dict[str, dict[str, float]]:
    """Shares of the images with PyTorch's steps, and with its class."""
    answers = {name: answer(images) for name, answer in opened.items()}
    steps, classes = answers[PYTORCH]
    return {
        name: {
            "steps_equal": float((got == steps).float().mean()),
            "decisions_equal": float((chosen == classes).float().mean()),
        }
        for name, (got, chosen) in answers.items()
    }


def _call(answer: Answer, images: Tensor) -> Callable[[], object]:
    return lambda: answer(images)


def _spread(seconds: list[float], batch: int) -> dict[str, float]:
    values = torch.tensor(seconds, dtype=torch.float64)
    levels = {f"p{level}": float(values.quantile(level / 100)) for level in (50, 95, 99)}
    return {**levels, "images_per_second": batch / statistics.median(seconds)}


def _bytes(file: Path) -> int:
    """With the weights that OpenVINO keeps beside it."""
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else None
    return file.stat().st_size + (weights.stat().st_size if weights else 0)


def _peak_bytes(subject: Subject, name: str, images: Tensor, lockstep: bool) -> int:
    """Most memory that this process has had, the interpreter and torch included, and on CUDA what torch held there."""
    contenders(subject, lockstep=lockstep)[name].open()(images)
    # Not getrusage, whose peak a new process inherits from the one that made it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    device = torch.device(subject.device)
    return int(peak.split()[1]) * 1024 + (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
