"""A step of the defense against its own convolutions: how much of its time they are, and what takes the rest.

    python -m benchmarks.bench_step --architecture wrn-16-4 --json OUT

The floor of a step is its convolutions, each timed alone on the same shapes in the same precision. A convolution of
weight (O, I / g, h, w) that gives P places for each of N images is 2 N P O (I / g) h w operations. What the step takes
beside them is told by kind, from a profile.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.profiler import ProfilerActivity, profile

from benchmarks._timing import median_ms
from fastdef.bench.machine import machine
from fastdef.defense import ActiveDefense
from fastdef.io import write_json
from fastdef.nn import build, parse_architecture
from fastdef.runtime.step import compiled, empty_state

CONVOLUTION = torch.ops.aten.convolution.default
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Parts of the names of what a profile sees, in the order that they are asked.
KINDS = {
    "convolutions": ("convolution",),
    "generated pointwise code": ("cpp_fused", "graph_"),
    "copies": ("copy", "reorder"),
}


class _Convolutions(Interpreter):
    """Runs a step's graph and keeps the arguments of each convolution."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.calls: list[tuple[Any, ...]] = []

    def run_node(self, n: Node) -> Any:
        if n.target is CONVOLUTION:
            self.calls.append(self.fetch_args_kwargs_from_env(n)[0])
        return super().run_node(n)


def operations(call: tuple[Any, ...]) -> int:
    """Of one convolution: multiplications and additions."""
    output = CONVOLUTION(*call)
    return 2 * output.numel() * call[1][0].numel()


def measure(model: torch.nn.Module, images: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds of a step and of its convolutions, each alone; rates in GFLOP/s; the profile by kind."""
    step = ActiveDefense(model, beta=160.0, dtype=dtype, compile=False).masked_step(images)
    seen = _Convolutions(step.step.graph)
    seen.run(images)
    calls = [tuple(_as_kernels_want(value) for value in call) for call in seen.calls]
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):  # generated code by its name
        fast, state = compiled(step, images), empty_state(images)
    whole = median_ms(lambda: fast(*state), images.device.type)
    alone = sum(median_ms(_once(call), images.device.type) for call in calls)
    work = sum(operations(call) for call in calls)
    return {
        "convolutions": len(calls),
        "operations": work,
        "step_ms": whole,
        "convolutions_alone_ms": alone,
        "share_of_floor": alone / whole,
        "step_gflops": work / whole / 1e6,
        "convolutions_alone_gflops": work / alone / 1e6,
        "profile_ms": by_kind(lambda: fast(*state)),
    }


def by_kind(run: Callable[[], object], turns: int = 10) -> dict[str, float]:
    """Milliseconds of one run, by kind of operator."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        for _ in range(turns):
            run()
    taken: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "the rest")
        taken[kind] += event.self_cpu_time_total / 1e3 / turns
    return dict(taken)


def _once(call: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: CONVOLUTION(*call)


def _as_kernels_want(value: object) -> object:
    if isinstance(value, Tensor) and value.ndim == 4:
        return value.detach().contiguous(memory_format=torch.channels_last)
    return value.detach() if isinstance(value, Tensor) else value


def main(
    architecture: str = "wrn-16-4",
    batch: Annotated[int, typer.Option(help="images of a step; what a CPU runs at once is 16")] = 16,
    size: int = 32,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure float32 and bfloat16 in one run on the CPU, print, and write JSON if asked."""
    torch.manual_seed(0)
    model = build(parse_architecture(architecture, in_channels=3)).eval()
    images = torch.rand(batch, 3, size, size)
    with torch.no_grad():
        rows = {name: measure(model, images, dtype) for name, dtype in DTYPES.items()}
    for name, row in rows.items():
        rates = f"{row['step_gflops']:.0f} of {row['convolutions_alone_gflops']:.0f} GFLOP/s"
        print(f"{name}: step {row['step_ms']:.2f} ms, {row['share_of_floor']:.0%} convolutions alone, {rates}")
        print("  " + ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in row["profile_ms"].items()), flush=True)
    if json_file is not None:
        facts = {**machine(images.device), "architecture": architecture, "batch": batch, "size": size}
        write_json(json_file, {**facts, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
