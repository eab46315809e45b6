"""How the kernel benchmarks time, and what they print."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def median_ms(run: Callable[[], object], device: str) -> float:
    """Median of ten runs after three to warm up; on CUDA with the cache flushed before each."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(run, return_mode="median")
    times = []
    for _ in range(13):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) * 1e3


def header(device: str) -> str:
    """The machine, and the columns of the CSV."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"# {name}, torch {torch.__version__}\nwhat,contender,shape,layout,dtype,ms,GB/s"


def record(path: Path | None, device: str, dtype: str, rows: list[dict[str, object]]) -> None:
    """Write the rows as JSON, if a path is given."""
    if path is not None:
        name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        result = {"device": name, "torch": torch.__version__, "dtype": dtype, "rows": rows}
        path.write_text(json.dumps(result, indent=1) + "\n")
