"""Which changes leave an answer bitwise the same, and which change what rounding does: a row a claim.

The README has the table. Rounding is more than a last digit here: a feature within rounding of the mean gets another
sign, and the step it takes is finite. So "to rounding" bounds how many images that may happen to.
"""

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdef.defense.noise import uniform_noise
from tests.answer_variants import (
    ELSEWHERE,
    Outcome,
    again,
    alone,
    backwards,
    defended,
    exported,
    in_batches,
    in_company,
    streamed,
    trained,
)

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rounding:
    """How far two programs may end apart that differ in rounding alone.

    Attributes:
        steps_equal: share of the images with the same number of steps, at least.
        steps_apart: largest difference in steps.
        close: share of the images whose pixels are all within 1e-5, at least.
        median: of an image's largest difference.
        probabilities: largest difference of a probability.
    """

    steps_equal: float
    steps_apart: int
    close: float
    median: float
    probabilities: float


# One image of twelve may have a sign that flips; it then moves a few thousandths of a pixel's range, and the
# probabilities with it.
SINGLE = Rounding(steps_equal=0.9, steps_apart=1, close=0.8, median=1e-6, probabilities=1e-2)
# Sixteen bits round the features of every image: 11 and 8 bits of mantissa, some signs in a hundred.
HALF = Rounding(steps_equal=0.9, steps_apart=1, close=0.0, median=0.01, probabilities=0.05)
BFLOAT = Rounding(steps_equal=0.7, steps_apart=2, close=0.0, median=0.03, probabilities=0.2)


def bitwise(one: Outcome, other: Outcome) -> None:
    assert one.keys() == other.keys()
    assert not [key for key, value in one.items() if not torch.equal(value, other[key])]


def to(rounding: Rounding, one: Outcome, other: Outcome) -> None:
    apart = (one["steps"] - other["steps"]).abs()
    pixels = (one["images"].double() - other["images"].double()).abs().amax((1, 2, 3))
    assert float((apart == 0).double().mean()) >= rounding.steps_equal
    assert int(apart.max()) <= rounding.steps_apart
    assert float((pixels <= 1e-5).double().mean()) >= rounding.close
    assert float(pixels.median()) <= rounding.median
    assert float((one["logits"].exp() - other["logits"].exp()).abs().max()) <= rounding.probabilities


ASKED = {"alone": alone, "in batches of five": in_batches(5), "backwards": backwards, "in company": in_company}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_call_again_is_bitwise_the_same(dtype, deterministic):
    options = {"dtype": dtype, "deterministic": deterministic}

    bitwise(defended("small", again, **options), defended("small", **options))


@pytest.mark.parametrize("name", ["small", "shipped"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ask", ASKED)
def test_a_deterministic_answer_is_bitwise_the_same_however_it_is_asked_for(name, dtype, ask):
    options = {"dtype": dtype, "deterministic": True}

    bitwise(defended(name, ASKED[ask], **options), defended(name, **options))


@pytest.mark.parametrize("ask", ASKED)
def test_any_other_answer_is_the_same_to_rounding(ask):
    to(SINGLE, defended("shipped", ASKED[ask]), defended("shipped"))


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_stream_is_bitwise_its_batch(deterministic):
    options = {"deterministic": deterministic}

    bitwise(streamed("shipped", **options), defended("shipped", **options))


@pytest.mark.parametrize("slots", [1, 7, 64])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_number_of_slots_matters_to_rounding(slots, deterministic):
    options = {"deterministic": deterministic}

    to(SINGLE, defended("shipped", slots=slots, **options), defended("shipped", **options))


def test_threads_matter_to_rounding():
    to(SINGLE, defended("small", threads=2), defended("small"))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, HALF), (torch.bfloat16, BFLOAT)])
@pytest.mark.parametrize("name", ["small", "shipped"])
def test_sixteen_bits_matter_to_their_rounding(name, dtype, rounding):
    to(rounding, defended(name, dtype=dtype), defended(name))


@pytest.mark.slow  # three compilations
def test_compiled_answers_are_bitwise_run_to_run_and_as_uncompiled_ones_to_rounding():
    options = {"compile": True, "deterministic": True}
    compiled = defended("shipped", **options)

    bitwise(defended("shipped", again, **options), compiled)
    bitwise(defended("shipped", backwards, **options), compiled)
    to(SINGLE, compiled, defended("shipped"))


@pytest.mark.parametrize("driven", [False, True])
@pytest.mark.parametrize("ask", ["again", *ASKED])
def test_an_export_is_bitwise_run_to_run_and_to_rounding_in_other_batches(driven, ask):
    found, expected = exported({"again": again, **ASKED}[ask], driven=driven), exported(driven=driven)

    if ask == "again":
        bitwise(found, expected)
    to(SINGLE, found, expected)


@pytest.mark.parametrize("slots", [1, 7])
def test_the_slots_of_a_driven_export_matter_to_rounding(slots):
    to(SINGLE, exported(driven=True, slots=slots), exported(driven=True))


@pytest.mark.parametrize("options", [{"driven": False}, {"driven": True}])
def test_exports_answer_as_pytorch_to_rounding(options):
    to(SINGLE, exported(**options), defended("small"))


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"ema": 0.9}])
def test_training_is_bitwise_the_same_again_and_resumed(options):
    first = trained(**options)

    bitwise(trained(**options), first)
    bitwise(trained(interrupted=True, **options), first)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What another process got."""
    file = tmp_path_factory.mktemp("elsewhere") / "outcomes.safetensors"
    program = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "answer_variants.py"), str(file)]
    # The threads of both are the same: training sums over its batches, and threads divide the sum.
    settings = f"import torch; torch.set_num_threads({torch.get_num_threads()})"
    run = f"{settings}; import runpy, sys; sys.argv = {program[3:]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    ended = subprocess.run([*program[:3], "-c", run], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return load_file(file)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_process_gets_bitwise_the_same(elsewhere, name):
    found = {key.partition("/")[2]: value for key, value in elsewhere.items() if key.partition("/")[0] == name}

    bitwise(found, ELSEWHERE[name]())


@pytest.mark.gpu
def test_the_noise_is_bitwise_the_same_on_a_gpu():
    ids, loops = torch.tensor([0, 7, 2**62]), torch.tensor([0, 1, 5])
    noise = partial(uniform_noise, shape=(3, 17, 19), seed=11, sigma=0.075)

    assert torch.equal(noise(ids.cuda(), loops.cuda()).cpu(), noise(ids, loops))


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("ask", [None, again, backwards, in_company])
def test_a_gpu_answers_as_the_cpu_to_rounding(ask, compile):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = defended("shipped", ask, device="cuda", compile=compile)

    to(SINGLE, found, defended("shipped"))
