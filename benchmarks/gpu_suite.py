"""Everything that only a GPU shows, in one call: the GPU tests, then every benchmark, each with a time of its own.

    python -m benchmarks.gpu_suite FOLDER [--only NAME ...]

Writes each part's output and JSON into the folder, and ``suite.json`` with what ran, how it ended and its time. A part
that fails or runs out of time does not keep the others from running. Works from a checkout that is not installed.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

PYTHON = sys.executable


def parts(out: Path) -> dict[str, tuple[list[str], int]]:
    """By name, what is run, and seconds that it may take; what teaches most comes first."""

    def module(name: str, *options: str) -> list[str]:
        return [PYTHON, "-m", name, *options, "--json", str(out / f"{name.rpartition('.')[2]}.json")]

    defense = [PYTHON, "-m", "fastdef", "bench", "defense", "--count", "512", "--half", "float16"]
    return {
        "tests": ([PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"], 300),
        "smoothing": (module("benchmarks.bench_smoothing"), 180),
        "afa_fuse": (module("benchmarks.bench_afa_fuse"), 180),
        "defense_shipped": ([*defense, "--json", str(out / "defense_shipped.json")], 240),
        "defense_wide": (
            [*defense, "--architecture", "wrn-28-10", "--ratio", "0.92", "--json", str(out / "defense_wide.json")],
            400,
        ),
        "training": (module("benchmarks.bench_training", "--architecture", "wrn-28-10", "--bf16"), 400),
        "training_fp32": (
            [*module("benchmarks.bench_training", "--architecture", "wrn-16-8")[:-1], str(out / "training_fp32.json")],
            300,
        ),
    }


def main(
    out: Path, only: Annotated[list[str] | None, typer.Option(help="names of parts; all if not given")] = None
) -> None:
    """Run the parts, and say how each ended."""
    if not torch.cuda.is_available():
        raise SystemExit("gpu_suite needs a CUDA device, and there is none")
    out.mkdir(parents=True, exist_ok=True)
    known = parts(out)
    if unknown := set(only or []) - set(known):
        raise SystemExit(f"gpu_suite needs parts among {', '.join(known)}, got {', '.join(sorted(unknown))}")
    told = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "parts": {}}
    for name in only or known:
        command, limit = known[name]
        start = time.perf_counter()
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            status, output = run.returncode, run.stdout + run.stderr
        except subprocess.TimeoutExpired as error:
            status, output = "out of time", str(error.stdout or "")
        seconds = time.perf_counter() - start
        (out / f"{name}.txt").write_text(output)
        told["parts"][name] = {"command": " ".join(command[1:]), "status": status, "seconds": seconds}
        (out / "suite.json").write_text(json.dumps(told, indent=1) + "\n")
        print(f"{name}: {status} after {seconds:.0f} s\n{output[-1500:]}", flush=True)


if __name__ == "__main__":
    typer.run(main)
