"""Dual batch norm with ReLU, forward and with its gradient: ours against eager PyTorch and torch.compile.

x is (N, C, H, W) at the three groups of WRN-28-10. Forward reads x and writes out, the backward reads x and grad and
writes dx: GB/s is 2 * x's bytes / time, and 5 * for both. The line "copy" is what the machine does on 2 * x's bytes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._timing import LAYOUTS, main, median_ms
from fastdef import ops


def eager(x: Tensor, w0: Tensor, bn0: nn.BatchNorm2d, bn1: nn.BatchNorm2d) -> Tensor:
    """The paper's line on torch's modules."""
    w0 = w0.to(x.dtype)[:, None, None, None]
    return torch.relu(w0 * bn0(x) + (1 - w0) * bn1(x))


def fastdef(x: Tensor, w0: Tensor, bn0: nn.BatchNorm2d, bn1: nn.BatchNorm2d) -> Tensor:
    """Ours, which folds the two batch norms itself."""
    return ops.afa_fuse(x, w0, ops.Norm.of(bn0), ops.Norm.of(bn1), relu=True)


CONTENDERS = {"eager": eager, "compile": torch.compile(eager, dynamic=False), "fastdef": fastdef}


def _norm(channels: int, device: str) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, device=device).eval().requires_grad_(False)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return norm


def measure(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str) -> list[dict[str, object]]:
    """One row a contender, and the machine's copy."""
    torch.compiler.reset()  # each shape compiled for itself, as a network's layers are
    n, c, _, _ = shape
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    w0, grad, bytes_of_x = torch.rand(n, device=device, requires_grad=True), torch.randn_like(x), x.nbytes
    arguments = x, w0, _norm(c, device), _norm(c, device)
    rows: list[dict[str, object]] = []

    def row(name: str, what: str, run: Callable[[], object], passes: int) -> None:
        ms = median_ms(run, device)
        rate = passes * bytes_of_x / ms / 1e6
        rows.append({"what": what, "contender": name, "shape": shape, "layout": layout, "ms": ms, "GB/s": rate})
        print(f"{what},{name},{'x'.join(map(str, shape))},{layout},{str(dtype)[6:]},{ms:.4f},{rate:.1f}", flush=True)

    row("copy", "copy", lambda: grad.copy_(x.detach()), 2)
    for name, function in CONTENDERS.items():
        with torch.no_grad():
            row(name, "forward", lambda: function(*arguments), 2)  # noqa: B023
        row(name, "both", lambda: torch.autograd.grad(function(*arguments), (x, w0), grad), 5)  # noqa: B023
    return rows


if __name__ == "__main__":
    main(__doc__, measure)
