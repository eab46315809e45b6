"""Feature smoothing loss and its field: ours against eager PyTorch and torch.compile.

F is (N, C, H, W) at the groups of WRN-28-10. The loss reads F; loss and field read F twice and write the field once:
GB/s is 3 * F's bytes / time for both, and F's bytes / time for the loss alone, whatever a contender really moves.
The line "copy" is what the machine does on 2 * F's bytes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks._timing import LAYOUTS, main, median_ms
from fastdef import ops
from fastdef.kernels import reference


def eager(f: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's lines in torch."""
    return reference.smoothing_field(f)


CONTENDERS = {
    "eager": eager,
    "compile": torch.compile(eager, dynamic=False),
    "fastdef": ops.smoothing_loss_and_field,
}
LOSSES = {
    "eager": lambda f: reference.smoothing(f)[0],
    "compile": torch.compile(lambda f: reference.smoothing(f)[0], dynamic=False),
    "fastdef": ops.smoothing_loss,
}


def measure(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str) -> list[dict[str, object]]:
    """One row a contender, and the machine's copy."""
    torch.compiler.reset()  # each shape compiled for itself, as a network's layers are
    f = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    target = torch.empty_like(f)
    rows: list[dict[str, object]] = []

    def row(name: str, what: str, run: Callable[[], object], passes: int) -> None:
        ms = median_ms(run, device)
        rate = passes * f.nbytes / ms / 1e6
        rows.append({"what": what, "contender": name, "shape": shape, "layout": layout, "ms": ms, "GB/s": rate})
        print(f"{what},{name},{'x'.join(map(str, shape))},{layout},{str(dtype)[6:]},{ms:.4f},{rate:.1f}", flush=True)

    with torch.no_grad():
        row("copy", "copy", lambda: target.copy_(f), 2)
        for name, function in LOSSES.items():
            row(name, "loss", lambda: function(f), 1)  # noqa: B023
        for name, both in CONTENDERS.items():
            row(name, "both", lambda: both(f), 3)  # noqa: B023
    return rows


if __name__ == "__main__":
    main(__doc__, measure)
