"""What the machine can do at most: copying, matrix products, and the convolutions of WRN-28-10.

A copy of B bytes moves 2 B; an n x n product is 2 n^3 operations; a 3x3 convolution of C channels on H x W planes is
2 * 9 * C^2 * H * W an image, and its input gradient the same: as the backward has it, and as a convolution by the
turned weight. Other benchmarks' rates are held against these.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks._timing import SHAPES, median_ms
from fastdef.bench.machine import machine
from fastdef.io import write_json

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def copy(device: str, size: int) -> dict[str, Any]:
    """Bandwidth of a copy of ``size`` bytes."""
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    ms = median_ms(lambda: target.copy_(source), device)
    return {"what": "copy", "bytes": size, "ms": ms, "GB/s": 2 * size / ms / 1e6}


def matmul(device: str, side: int, dtype: torch.dtype) -> dict[str, Any]:
    """Rate of a square matrix product."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    ms = median_ms(lambda: left @ right, device)
    return {"what": "matmul", "side": side, "dtype": str(dtype)[6:], "ms": ms, "TFLOP/s": 2 * side**3 / ms / 1e9}


def convolution(device: str, batch: int, shape: tuple[int, int, int], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Rates of a 3x3 convolution and of its input gradient, in channels_last."""
    channels, height, width = shape
    images = torch.randn(batch, *shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (
        torch.randn(channels, channels, 3, 3, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    )
    flops = 2 * 9 * channels**2 * height * width * batch

    def row(what: str, run: Callable[[], object]) -> dict[str, Any]:
        ms = median_ms(run, device)
        facts = {"what": what, "shape": [batch, *shape], "dtype": str(dtype)[6:]}
        return {**facts, "ms": ms, "TFLOP/s": flops / ms / 1e9}

    def gradient() -> object:
        sides = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
        return torch.ops.aten.convolution_backward(images, images, weight, None, *sides)

    turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    return [
        row("convolution", lambda: torch.nn.functional.conv2d(images, weight, padding=1)),
        row("input gradient", gradient),
        row("input gradient as a convolution", lambda: torch.nn.functional.conv2d(images, turned, padding=1)),
    ]


def main(
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    batch: Annotated[int | None, typer.Option(help="images of a convolution")] = None,
    search: Annotated[bool, typer.Option("--search", help="let cuDNN time its algorithms")] = False,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure, print, and write JSON if asked."""
    gpu = device == "cuda"
    torch.backends.cudnn.benchmark = search
    rows = [copy(device, 1 << 30 if gpu else 1 << 26)]
    with torch.no_grad():
        rows += [matmul(device, 8192 if gpu else 512, dtype) for dtype in DTYPES]
        for dtype in DTYPES:
            for shape in SHAPES:
                rows += convolution(device, batch or (256 if gpu else 1), shape, dtype)
    for found in rows:
        rate = f"{found['GB/s']:.1f} GB/s" if "GB/s" in found else f"{found['TFLOP/s']:.3f} TFLOP/s"
        print(f"{found['what']}, {found.get('shape', '')} {found.get('dtype', '')}: {rate}", flush=True)
    if json_file is not None:
        write_json(json_file, {**machine(torch.device(device)), "rows": rows})


if __name__ == "__main__":
    typer.run(main)
