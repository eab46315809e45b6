"""What a figure was measured on, and how: the part that every benchmark shares."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """Command, date, device, threads, versions, and on CUDA whether float32 convolutions compute in TF32 (the default).

    To stand beside every figure.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()
    return {
        "command": shlex.join(_from_here(part) for part in sys.orig_argv),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else False,
    }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleaved(
    contenders: Mapping[str, Callable[[], object]], device: torch.device, *, turns: int
) -> dict[str, list[float]]:
    """Seconds of each contender, turn by turn, so that whatever else the machine does falls on all alike.

    Each contender runs once more before, for compilation and caches.
    """
    for work in contenders.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, work in contenders.items():
            taken[name].append(seconds(work, device))
    return taken


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most memory that PyTorch's allocator held during ``work``, above what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _from_here(part: str) -> str:
    """A part of a command line; a path as it looks from the current folder, a program as its name."""
    if not Path(part).is_absolute():
        return part
    return os.path.relpath(part) if Path(part).is_relative_to(Path.cwd()) else Path(part).name


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
