"""The kernels as a GPU would get them: compiled for three generations, on a machine that may have none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed here")

VECTORS = {f"{name}_ptr": "*fp32:16" for name in ("w0", "scale0", "shift0", "scale1", "shift1")}
# Tiles of the two layouts: 32 x 32 and 8 x 8 planes, 160 and 640 channels last.
TILES = [
    {"CHANNELS_LAST": False, "BLOCK_A": 4, "BLOCK_B": 1024},
    {"CHANNELS_LAST": False, "BLOCK_A": 64, "BLOCK_B": 64},
    {"CHANNELS_LAST": True, "BLOCK_A": 128, "BLOCK_B": 32},
    {"CHANNELS_LAST": True, "BLOCK_A": 32, "BLOCK_B": 128},
]
ODD_TILE = {"CHANNELS_LAST": False, "BLOCK_A": 16, "BLOCK_B": 64}  # of 7 x 7 planes


def request(kernel, dtype, tile, size):
    """What a launch of this kernel on this tile asks of the compiler."""
    features = ("x", "out") if kernel == "_forward_kernel" else ("grad", "x", "dx")
    signature = VECTORS | {f"{name}_ptr": f"*{dtype}:16" for name in features} | {"A": size, "B": size}
    if kernel == "_backward_kernel":
        signature["parts_ptr"] = "*fp32:16"
    return {
        "module": "fastdef.kernels.afa_fuse",
        "kernel": kernel,
        "signature": signature,
        "constants": {**tile, "RELU": True},
    }


@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kernel"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_kernels_do_not_spill_and_load_128_bits(kernel, dtype):
    requests = [request(kernel, dtype, tile, "i32:16") for tile in TILES]
    requests.append(request(kernel, dtype, ODD_TILE, "i32"))

    program = Path(__file__).with_name("cross_compile.py")
    run = subprocess.run(
        [sys.executable, program],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        cwd=program.parents[2],
        env=None,
    )

    assert run.returncode == 0, run.stderr[-2000:]
    *tiles, odd = json.loads(run.stdout)
    for resources in [found for tile in [*tiles, odd] for found in tile.values()]:
        assert resources["spilled"] == 0
        assert resources["registers"] <= 128  # four blocks of 128 threads on a multiprocessor
    assert all(found["load_bits"] == 128 for tile in tiles for found in tile.values())
