"""The kernels as a GPU would get them, compiled where there need not be one: no spills, and wide loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed here")

# Tiles of 32 x 32 planes, and of 160 channels last.
TILES = [
    {"CHANNELS_LAST": False, "BLOCK_A": 4, "BLOCK_B": 1024},
    {"CHANNELS_LAST": True, "BLOCK_A": 128, "BLOCK_B": 32},
]
ODD_TILE = {"CHANNELS_LAST": False, "BLOCK_A": 16, "BLOCK_B": 64}  # of 7 x 7 planes, where no load can be wide


def request(kernel, dtype, tile, size):
    """What a launch of this kernel on this tile asks of the compiler."""
    norms = [f"{name}{i}" for name in ("mean", "var", "weight", "bias") for i in (0, 1)]
    vectors = ("w0", *norms, "parts")
    features = ("x", "out", "grad", "dx")
    unused = ("parts", "grad", "dx") if kernel == "_forward_kernel" else ("out",)
    signature = {f"{name}_ptr": "*fp32:16" for name in vectors if name not in unused}
    signature |= {f"{name}_ptr": f"*{dtype}:16" for name in features if name not in unused}
    return {
        "module": "fastdef.kernels.afa_fuse",
        "kernel": kernel,
        "signature": signature | {"eps0": "fp32", "eps1": "fp32", "A": size, "B": size},
        "constants": {**tile, "RELU": True},
    }


KERNELS = "_forward_kernel", "_backward_kernel"
WIDE = [request(kernel, dtype, tile, "i32:16") for kernel in KERNELS for dtype in ("bf16", "fp32") for tile in TILES]
NARROW = [request(kernel, "bf16", ODD_TILE, "i32") for kernel in KERNELS]


@pytest.fixture(scope="module")
def resources():
    program = Path(__file__).with_name("cross_compile.py")
    requests = json.dumps(WIDE + NARROW)
    run = subprocess.run(
        [sys.executable, program], input=requests, capture_output=True, text=True, cwd=program.parents[2]
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_no_kernel_spills_and_every_aligned_load_is_wide(resources, architecture):
    found = [by_architecture[architecture] for by_architecture in resources]

    for asked, got in zip(WIDE + NARROW, found, strict=True):
        assert got["spilled"] == 0, asked
        assert got["registers"] <= 128, asked  # four warps a block: at least four blocks a multiprocessor
    assert all(got["load_bits"] == 128 for got in found[: len(WIDE)])
