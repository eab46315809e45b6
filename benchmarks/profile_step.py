"""What the defense's steps spend a GPU's time on: kernels by time, and the share of the time that the GPU is busy.

    python -m benchmarks.profile_step --architecture wrn-28-10 --half bfloat16

The floor of a step is its convolutions over the rate of ``benchmarks.bench_ceilings``, and the features read and
written once for each of them over the bandwidth.
"""

from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from fastdef.bench.machine import seconds
from fastdef.defense import ActiveDefense
from fastdef.nn import build, parse_architecture


def main(
    architecture: str = "wrn-28-10",
    half: Annotated[str, typer.Option(help="float32, float16 or bfloat16")] = "bfloat16",
    slots: int = 128,
    count: int = 512,
    size: int = 32,
    rows: Annotated[int, typer.Option(help="kernels to print")] = 25,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the kernels of one call that smooths random images, after two that warm up."""
    place = torch.device(device)
    torch.manual_seed(0)
    model = build(parse_architecture(architecture, in_channels=3)).eval().to(place)
    images = torch.rand(count, 3, size, size, device=place)
    defense = ActiveDefense(model, beta=160.0, max_steps=20, slots=slots, dtype=getattr(torch, half), compile=True)
    defense.calibrate(images[:slots], ratio=0.92)
    for _ in range(2):
        defense.smooth(images)
    defense.stats.clear()
    taken = seconds(lambda: defense.smooth(images), place)
    rate = defense.stats.slot_steps / taken
    print(f"{taken * 1e3:.1f} ms, {rate:.0f} steps of a slot a second, useful {defense.stats.useful} of them")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if place.type == "cuda" else [])
    with profile(activities=activities, acc_events=True) as seen:
        seconds(lambda: defense.smooth(images), place)
    key = "self_cuda_time_total" if place.type == "cuda" else "self_cpu_time_total"
    busy = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    print(f"busy: {busy * 1e3:.1f} ms on the device, {busy / taken:.0%} of the time")
    print(seen.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=70))


if __name__ == "__main__":
    typer.run(main)
