"""How the kernel benchmarks are called, time, and print."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastdef.io import write_json


def median_ms(run: Callable[[], object], device: str) -> float:
    """Median of ten runs after three to warm up; on CUDA of a graph's replays, with the cache flushed before each."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(_graphed(run), return_mode="median")
    times = []
    for _ in range(13):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) * 1e3


def _graphed(run: Callable[[], object]) -> Callable[[], object]:
    """``run`` as a CUDA graph: of the smaller shapes Python's launches would take longer than what they launch.

    What cannot be captured is timed as it is called, and that is said.
    """
    temporary = torch.cuda.Stream()
    temporary.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(temporary):  # compiles and allocates before the capture
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(temporary)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        print(f"# launches included: {str(error).splitlines()[0]}", file=sys.stderr)
        return run
    return graph.replay


SHAPES = [(160, 32, 32), (320, 16, 16), (640, 8, 8)]  # the groups of WRN-28-10
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Measure = Callable[[tuple[int, ...], str, torch.dtype, str], list[dict[str, object]]]  # shape, layout, dtype, device


def main(description: str | None, measure: Measure) -> None:
    """Measure every shape in every layout; print CSV, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16" if gpu else "float32")
    parser.add_argument("--batch", type=int, default=512 if gpu else 16)
    parser.add_argument("--json", type=Path, metavar="OUT")
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"# {name}, torch {torch.__version__}\nwhat,contender,shape,layout,dtype,ms,GB/s")
    rows = [
        row
        for shape in SHAPES
        for layout in LAYOUTS
        for row in measure((given.batch, *shape), layout, getattr(torch, given.dtype), given.device)
    ]
    if given.json is not None:
        result = {"device": name, "torch": torch.__version__, "dtype": given.dtype, "rows": rows}
        write_json(given.json, result)
