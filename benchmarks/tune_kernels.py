"""Which launch of each kernel is the fastest, by shape and type: what ``kernels/configurations.py`` is made from.

    python -m benchmarks.tune_kernels --json OUT

Every candidate runs on the groups of WRN-28-10 in each type (the dual batch norm in both layouts), is held against the
reference, and is timed with a cold cache, all candidates in one run. An entry is printed, ready to be pasted, where a
candidate is at least 3 % faster than the default. ``--small`` rehearses it in Triton's interpreter, on any machine.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks._timing import LAYOUTS, SHAPES, median_ms
from fastdef.bench.machine import machine
from fastdef.io import write_json
from fastdef.kernels import configurations, reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PAYS = 0.97  # of the default's time
DEFAULTS = {
    "whole": configurations.Whole,
    "smoothing": configurations.Smoothing,
    "afa_fuse": configurations.AfaFuse,
}


def tune_whole(shape: tuple[int, ...], dtype: torch.dtype, device: str, candidates: list[Any]) -> dict[str, Any]:
    """Times of loss and field by candidate, where a program takes a sample whole."""
    return _tune_smoothing("whole", configurations.WHOLE, shape, dtype, device, candidates)


def tune_smoothing(shape: tuple[int, ...], dtype: torch.dtype, device: str, candidates: list[Any]) -> dict[str, Any]:
    """The same where a sample is split over programs: 64 samples at most, which no GPU takes whole."""
    few = (min(64, shape[0]), *shape[1:])
    return _tune_smoothing("smoothing", configurations.SMOOTHING, few, dtype, device, candidates)


def _tune_smoothing(
    name: str,
    chosen: dict[Any, Any],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    candidates: list[Any],
) -> dict[str, Any]:
    from fastdef.kernels import smoothing

    features = torch.randn(shape, device=device).to(dtype).flatten(1)
    expected = reference.smoothing_field(features)
    key = features.shape[1], dtype

    def check(found: tuple[Tensor, ...]) -> None:
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
        # The mean is a sum in another order: a value beside it may fall on its other side.
        assert float((found[1] != expected[1]).double().mean()) < 1e-3

    times = _times(chosen, key, candidates, lambda: smoothing.forward_with_field(features), check, device)
    return {"kernel": name, "key": [key[0], str(dtype)], "shape": list(shape), "candidates": times}


def tune_afa_fuse(shape: tuple[int, ...], dtype: torch.dtype, device: str, candidates: list[Any]) -> dict[str, Any]:
    """Times of forward and backward together, in both layouts, by candidate."""
    from fastdef.kernels import afa_fuse

    n, c, h, w = shape
    w0 = torch.rand(n, device=device)
    norms = [reference.Norm(*(torch.rand(c, device=device) + 0.5 for _ in range(4)), eps=1e-5) for _ in range(2)]
    inputs = [
        tuple(torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout) for _ in range(2))
        for layout in LAYOUTS.values()
    ]
    expected = [reference.afa_fuse(x, w0, *norms, relu=True) for x, _ in inputs]

    def both() -> list[Tensor]:
        out = [afa_fuse.forward(x, w0, *norms, relu=True) for x, _ in inputs]
        for x, grad in inputs:
            afa_fuse.backward(grad, x, w0, *norms, relu=True)
        return out

    def check(found: list[Tensor]) -> None:
        torch.testing.assert_close(found, expected)

    key = c, h * w, dtype
    times = _times(configurations.AFA_FUSE, key, candidates, both, check, device)
    return {"kernel": "afa_fuse", "key": [c, h * w, str(dtype)], "shape": list(shape), "candidates": times}


def _times(
    chosen: dict[Any, Any],
    key: Any,
    candidates: list[Any],
    work: Callable[[], Any],
    check: Callable[[Any], None],
    device: str,
) -> dict[str, float]:
    times = {}
    for candidate in candidates:
        with _instead(chosen, key, candidate):
            check(work())
            times[repr(candidate)] = median_ms(work, device)
    return times


@contextmanager
def _instead(chosen: dict[Any, Any], key: Any, candidate: Any) -> Iterator[None]:
    """The list with this candidate, for as long as the context lasts."""
    before = dict(chosen)
    chosen[key] = candidate
    try:
        yield
    finally:
        chosen.clear()
        chosen.update(before)


def entry(found: dict[str, Any]) -> str | None:
    """The line for the list, where one pays."""
    default = DEFAULTS[found["kernel"]]()
    best = min(found["candidates"], key=found["candidates"].get)
    if found["candidates"][best] > PAYS * found["candidates"][repr(default)]:
        return None
    return f"({', '.join(map(str, found['key']))}): {best},"


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 512,
    only: Annotated[list[str] | None, typer.Option(help="names of kernels; all if not given")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="bfloat16, float16 or float32; all if not given")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="a rehearsal, in the interpreter where there is no GPU")
    ] = False,
) -> None:
    """Measure every candidate, and print the entries that pay."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not small:
        raise SystemExit("tune_kernels needs a CUDA device, and there is none; --small rehearses it in the interpreter")
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    shapes, dtypes = ([(8, 6, 6)], DTYPES[-1:]) if small else (SHAPES, DTYPES)
    dtypes = tuple(getattr(torch, name) for name in dtype) if dtype else dtypes
    rows = []
    tunes = {"whole": tune_whole, "smoothing": tune_smoothing, "afa_fuse": tune_afa_fuse}
    for name, tune in tunes.items():
        if only is not None and name not in only:
            continue
        candidates = configurations.CANDIDATES[name]
        for shape in shapes:
            for kind in dtypes:
                found = tune((5 if small else batch, *shape), kind, device, candidates)
                line = entry(found)
                print(f"{name} {shape} {str(kind)[6:]}: {line or 'the default'}", flush=True)
                rows.append({**found, "entry": line})
    if json_file is not None:
        write_json(json_file, {"machine": machine(torch.device(device)), "rows": rows})


if __name__ == "__main__":
    typer.run(main)
