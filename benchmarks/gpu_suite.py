"""Everything that only a GPU shows, in one call: the GPU tests, every benchmark, then trainings and their evaluation.

    python -m benchmarks.gpu_suite --minutes 5 --out DIR [--only NAME ...]
    python -m benchmarks.gpu_suite --minutes 6 --out DIR --root FOLDER --only train_smoothing --only static ...

Writes each part's output and JSON into the folder, and ``suite.json`` with what ran, how it ended and its time, with
device, driver, clocks and versions. Called again it goes on with what is not done. A part that fails or runs out of
time does not keep the others from running. With ``--root``, the folder of CIFAR-10, models are trained and evaluated
too. Works from a checkout that is not installed. ``--small`` runs a small form of everything on whatever there is: a
rehearsal.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastdef.bench.machine import machine
from fastdef.io import write_json

PYTHON = sys.executable
SECONDS = 400  # that a part may take, where the minutes leave as many
AT_MOST = {"tests": 120, "ceilings": 40, "smoothing": 80, "afa_fuse": 80, "defense_wide": 100, "training": 150}


def parts(out: Path, root: Path | None, *, architecture: str, epochs: int, small: bool) -> dict[str, list[str]]:
    """By name, what is run."""
    benchmarks = _small(out) if small else _benchmarks(out)
    trainings = {} if root is None else _trainings(out, root, architecture, epochs=epochs, small=small)
    return benchmarks | trainings


def _module(out: Path, name: str, file: str, *options: str) -> list[str]:
    return [PYTHON, "-m", name, *options, "--json", str(out / f"{file}.json")]


def _benchmarks(out: Path) -> dict[str, list[str]]:
    many = ("bench", "defense", "--batch-size", "128", "--half", "float16")
    wide = (*many, "--limit", "256", "--turns", "2", "--architecture", "wrn-28-10", "--ratio", "0.92", "--beta", "160")
    tests = ["-q", "--numprocesses", "8", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    return {
        "tests": [PYTHON, "-m", "pytest", *tests],
        "ceilings": _module(out, "benchmarks.bench_ceilings", "ceilings"),
        "smoothing": _module(out, "benchmarks.bench_smoothing", "smoothing"),
        "defense_wide": _module(out, "fastdef", "defense_wide", *wide, "--device", "cuda"),
        "afa_fuse": _module(out, "benchmarks.bench_afa_fuse", "afa_fuse"),
        "training": _module(
            out, "benchmarks.bench_training", "training", "--architecture", "wrn-16-4", "--bf16", "--turns", "2"
        ),
        "tuning": _module(out, "benchmarks.tune_kernels", "tuning"),
        "training_fp32": _module(
            out, "benchmarks.bench_training", "training_fp32", "--architecture", "wrn-16-8", "--turns", "2"
        ),
        "defense_shipped": _module(out, "fastdef", "defense_shipped", *many, "--limit", "512", "--device", "cuda"),
    }


def _small(out: Path) -> dict[str, list[str]]:
    tiny = ("--architecture", "wrn-10-1", "--batch", "4", "--turns", "1")
    shipped = ("bench", "defense", "--limit", "8", "--turns", "1")
    return {
        "ceilings": _module(out, "benchmarks.bench_ceilings", "ceilings", "--batch", "1"),
        "smoothing": _module(out, "benchmarks.bench_smoothing", "smoothing", "--batch", "1"),
        "afa_fuse": _module(out, "benchmarks.bench_afa_fuse", "afa_fuse", "--batch", "1"),
        "tuning": _module(out, "benchmarks.tune_kernels", "tuning", "--small"),
        "defense_shipped": _module(out, "fastdef", "defense_shipped", *shipped),
        "training": _module(out, "benchmarks.bench_training", "training", *tiny),
    }


def _trainings(out: Path, root: Path, architecture: str, *, epochs: int, small: bool) -> dict[str, list[str]]:
    """Active Defense, static and adaptive, and AFA on WRN-16-4; tiny ones for a rehearsal."""
    data = ["--data", "cifar10", "--root", str(root), "--device", "cpu" if small else "cuda"]
    fast = ["--limit", "64", "--batch-size", "16"] if small else ["--bf16", "--compile"]
    wide, narrow = ("wrn-10-1", "wrn-10-1") if small else (architecture, "wrn-16-4")
    smoothed, afa = str(out / "smoothed" / "model.safetensors"), str(out / "afa" / "model.safetensors")
    images, budget = ("8", "smoke") if small else ("500", "quick")

    def fastdef(*arguments: str) -> list[str]:
        return [PYTHON, "-m", "fastdef", *arguments, *data]

    def static(file: str, *options: str) -> list[str]:
        return [*fastdef("evaluate", smoothed, *options, "--limit", images), "--json", str(out / f"{file}.json")]

    train = ("--architecture", wide, "--epochs", str(epochs), *fast, "--out", str(out / "smoothed"))
    branches = ("--architecture", narrow, "--branches", "3", "--epochs", "2", "--fusing-epochs", "1", *fast)
    adaptive = ("--budget", budget, "--rows", "0,1,2,3,5", "--report", str(out / "adaptive"))
    return {
        "train_smoothing": fastdef("train", "smoothing", *train),
        "static": static("static"),
        "static_loops": static("static_loops", "--outer-loops", "10"),
        "static_half": static("static_half", "--dtype", "bfloat16"),
        "adaptive": [
            *fastdef("evaluate-adaptive", smoothed, *adaptive, "--limit", images),
            *("--json", str(out / "adaptive.json")),
        ],
        "train_afa": fastdef("train", "afa", *branches, "--out", str(out / "afa")),
        "evaluate_afa": [
            *fastdef("evaluate-afa", afa, "--limit", images),
            *("--json", str(out / "evaluate_afa.json"), "--figure", str(out / "evaluate_afa.png")),
        ],
    }


def main(
    out: Annotated[Path, typer.Option(help="folder of the results")],
    minutes: Annotated[float | None, typer.Option(help="stop after as many; the same call goes on")] = None,
    only: Annotated[list[str] | None, typer.Option(help="names of parts; all if not given")] = None,
    root: Annotated[Path | None, typer.Option(help="folder of CIFAR-10: train and evaluate too")] = None,
    architecture: Annotated[str, typer.Option(help="of the training with the smoothing loss")] = "wrn-28-10",
    epochs: Annotated[int, typer.Option(help="of the same")] = 10,
    small: Annotated[bool, typer.Option("--small", help="a rehearsal, on any machine")] = False,
) -> None:
    """Run the parts that are not done, and say how each ended."""
    if not small and not torch.cuda.is_available():
        raise SystemExit("gpu_suite needs a CUDA device, and there is none; --small rehearses it on a CPU")
    known = parts(out, root, architecture=architecture, epochs=epochs, small=small)
    if unknown := set(only or []) - set(known):
        raise SystemExit(f"gpu_suite needs parts among {', '.join(known)}, got {', '.join(sorted(unknown))}")
    out.mkdir(parents=True, exist_ok=True)
    record = out / "suite.json"
    told = json.loads(record.read_text()) if record.is_file() else {**facts(), "parts": {}}
    end = time.monotonic() + (60 * minutes if minutes is not None else float("inf"))
    for name in only or known:
        if told["parts"].get(name, {}).get("status") == 0:
            continue
        left = end - time.monotonic()
        if left < 1:
            print(f"{name}: out of time; the same call goes on here", flush=True)
            break
        told["parts"][name] = run(known[name], out / f"{name}.txt", min(AT_MOST.get(name, SECONDS), left))
        write_json(record, told)
    for name, part in told["parts"].items():
        print(f"{name:16s} {part['status']!s:12s} {part['seconds']:6.0f} s  {part['last']}", flush=True)


def run(command: list[str], output: Path, limit: float) -> dict[str, Any]:
    """Run a part; its status, seconds and last line."""
    start = time.perf_counter()
    status: int | str
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        status, text = ended.returncode, ended.stdout + ended.stderr
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        status, text = "out of time", said.decode(errors="replace") if isinstance(said, bytes) else said
    output.write_text(text)
    last = (text.strip().splitlines() or [""])[-1][:100]
    seconds = time.perf_counter() - start
    return {"command": " ".join(command[1:]), "status": status, "seconds": seconds, "last": last}


def facts() -> dict[str, Any]:
    """Machine and versions; of a GPU its driver, clocks and limits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = machine(device)
    if device.type == "cuda":
        fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True)
        found["gpu"] = dict(zip(fields.split(","), answer.stdout.strip().split(", "), strict=False))
    return found


if __name__ == "__main__":
    typer.run(main)
