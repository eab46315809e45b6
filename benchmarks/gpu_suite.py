"""Everything that only a GPU shows, in one call: the GPU tests, then every benchmark, what teaches most first.

    python -m benchmarks.gpu_suite --minutes 8 --out DIR [--only NAME ...]

Writes each part's output and JSON into the folder, and ``suite.json`` with what ran, how it ended and its time, with
device, driver, clocks and versions. Called again it goes on with what is not done. A part that fails or runs out of
time does not keep the others from running. Works from a checkout that is not installed. ``--small`` runs a small form
of every benchmark on whatever there is: a rehearsal.
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

PYTHON = sys.executable
SECONDS = 400  # that a part may take, where the minutes leave as many


def parts(out: Path, *, small: bool) -> dict[str, list[str]]:
    """By name, what is run."""

    def module(name: str, file: str, *options: str) -> list[str]:
        return [PYTHON, "-m", name, *options, "--json", str(out / f"{file}.json")]

    def defense(file: str, *options: str) -> list[str]:
        return [PYTHON, "-m", "fastdef", "bench", "defense", *options, "--json", str(out / f"{file}.json")]

    if small:
        tiny = ("--architecture", "wrn-10-1", "--batch", "4", "--turns", "1")
        return {
            "ceilings": module("benchmarks.bench_ceilings", "ceilings", "--batch", "1"),
            "smoothing": module("benchmarks.bench_smoothing", "smoothing", "--batch", "1"),
            "afa_fuse": module("benchmarks.bench_afa_fuse", "afa_fuse", "--batch", "1"),
            "tuning": module("benchmarks.tune_kernels", "tuning", "--small"),
            "defense_shipped": defense("defense_shipped", "--count", "8", "--turns", "1"),
            "training": module("benchmarks.bench_training", "training", *tiny),
        }
    many = ("--count", "512", "--half", "float16")
    return {
        "tests": [PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"],
        "ceilings": module("benchmarks.bench_ceilings", "ceilings"),
        "smoothing": module("benchmarks.bench_smoothing", "smoothing"),
        "afa_fuse": module("benchmarks.bench_afa_fuse", "afa_fuse"),
        "defense_wide": defense("defense_wide", *many, "--architecture", "wrn-28-10", "--ratio", "0.92"),
        "training": module("benchmarks.bench_training", "training", "--architecture", "wrn-28-10", "--bf16"),
        "tuning": module("benchmarks.tune_kernels", "tuning"),
        "training_fp32": module("benchmarks.bench_training", "training_fp32", "--architecture", "wrn-16-8"),
        "defense_shipped": defense("defense_shipped", *many),
    }


def main(
    out: Annotated[Path, typer.Option(help="folder of the results")],
    minutes: Annotated[float | None, typer.Option(help="stop after as many; the same call goes on")] = None,
    only: Annotated[list[str] | None, typer.Option(help="names of parts; all if not given")] = None,
    small: Annotated[bool, typer.Option("--small", help="a rehearsal, on any machine")] = False,
) -> None:
    """Run the parts that are not done, and say how each ended."""
    if not small and not torch.cuda.is_available():
        raise SystemExit("gpu_suite needs a CUDA device, and there is none; --small rehearses it on a CPU")
    known = parts(out, small=small)
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
        told["parts"][name] = run(known[name], out / f"{name}.txt", min(SECONDS, left))
        record.write_text(json.dumps(told, indent=1) + "\n")
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
