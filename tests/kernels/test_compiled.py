"""Kernels compiled for GPUs that need not be here: no spills, loads as wide as the hardware has, exact divisions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastdef.kernels.configurations import Smoothing, Whole

pytest.importorskip("triton", reason="triton is not installed here")
ROOT = Path(__file__).parent.parent.parent
FLOATS = ("fp32", "fp16", "bf16")


def smoothing(dtype):
    f, partials, sizes = f"*{dtype}:16", "*fp32:16", {"M": "i32:16", "SPAN": "i32:16"}
    block = {"BLOCK": Smoothing().block}
    sums = {"f_ptr": f, "sums_ptr": partials, **sizes}
    moments = {**sums, "deviations_ptr": partials, "signs_ptr": partials}
    per_sample = {name: partials for name in ("mean_ptr", "tilt_ptr", "scale_ptr")}
    field = {"f_ptr": f, **per_sample, "field_ptr": f, **sizes}
    vectors = ("sums_ptr", "deviations_ptr", "signs_ptr", "loss_ptr", "mean_ptr", "tilt_ptr")
    finish = {**dict.fromkeys(vectors, partials), "M": "i32:16", "P": "i32"}
    answers = dict.fromkeys(("loss_ptr", "mean_ptr", "tilt_ptr"), partials)
    whole = {"f_ptr": f, **answers, "field_ptr": f, "N": "i32", "M": "i32:16"}
    once = {"BLOCK": Whole().block, "STAGES": Whole().stages}
    return [
        ("_whole_kernel", whole, {**once, "FIELD": False}),
        ("_whole_kernel", whole, {**once, "FIELD": True}),
        ("_sums_kernel", sums, block),
        ("_moments_kernel", moments, {**block, "PARTS": 64}),
        ("_finish_kernel", finish, {"PARTS": 64}),
        ("_field_kernel", field, {**block, "SCALED": False}),
        ("_field_kernel", field, {**block, "SCALED": True}),
    ]


REQUESTS = [
    {
        "module": "fastdef.kernels.smoothing",
        "kernel": kernel,
        "signature": signature,
        "constants": constants,
        "warps": Whole().warps if kernel == "_whole_kernel" else Smoothing().warps,
    }
    for dtype in FLOATS
    for kernel, signature, constants in smoothing(dtype)
]


@pytest.fixture(scope="module")
def resources():
    program = Path(__file__).parent / "cross_compile.py"
    run = subprocess.run(
        [sys.executable, program], input=json.dumps(REQUESTS), capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_no_kernel_spills_or_approximates_and_every_load_of_features_is_wide(resources, architecture):
    for request, by_architecture in zip(REQUESTS, resources, strict=True):
        found = by_architecture[architecture]
        assert found["spilled"] == 0, request
        assert found["approximate"] == 0, request  # all signs equal must give a tilt of exactly one
        assert found["load_bits"] == 128 or "f_ptr" not in request["signature"], request
        most = 65536 // (32 * max(request["warps"], 16))  # at least four blocks of four warps a multiprocessor
        assert found["registers"] <= most, request
