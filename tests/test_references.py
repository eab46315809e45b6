"""Every back end against one truth: the naive loop in double precision, stored by ``tools.references``.

What a back end may differ by stands beside it, with the reason. Its steps, L_F and pixels differ where a feature within
its rounding of the mean gets another sign; single precision has few of those, sixteen bits have some in every image.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from benchmarks.programs import Subject, naive
from fastdef.assets import ASSETS
from fastdef.checkpoint import load
from fastdef.defense import ActiveDefense
from fastdef.export.files import export_onnx
from tools.references import COUNT, SEED, references, shipped, stored, subject


@dataclass(frozen=True)
class Allowed:
    """How far from the truth.

    Attributes:
        steps_equal: share of the images with the same number of steps, at least.
        steps_apart: largest difference in steps.
        pixels: share of the images whose pixels are all within 1e-5, at least.
        within: share of the images whose probabilities are within ``probability``, at least.
        probability: see ``within``.
        decisions: share of the images with the same class, at least.
    """

    steps_equal: float
    steps_apart: int
    pixels: float
    within: float
    probability: float
    decisions: float


# Nothing rounds but the 53rd bit; the file keeps the images in single precision, and an answer its logits.
DOUBLE = Allowed(steps_equal=1, steps_apart=0, pixels=1, within=1, probability=1e-6, decisions=1)
# What single precision allows is what the naive loop itself does in it: of these 24 images, in batches of 24 and of 1,
# 23 and 24 take the steps of double precision, 16 and 19 end within 1e-5, and the probabilities of 23 are within 0.01.
# One image less is room for another machine.
SINGLE = Allowed(steps_equal=0.9, steps_apart=1, pixels=0.62, within=0.9, probability=1e-2, decisions=1)
# Features with 11 bits: signs flip in every image, and no image is within 1e-5; the step is 0.7 % off.
HALF = Allowed(steps_equal=0.85, steps_apart=2, pixels=0, within=0.9, probability=0.03, decisions=0.95)
# 8 bits; the step is 2 % off.
BFLOAT = Allowed(steps_equal=0.75, steps_apart=2, pixels=0, within=0.8, probability=0.1, decisions=0.95)


def close_enough(allowed, images, steps, probabilities):
    truth = stored()
    apart = (steps.cpu() - truth["steps"]).abs()
    pixels = (images.cpu().double() - truth["images"].double()).abs().amax((1, 2, 3))
    off = (probabilities.cpu().double() - truth["probabilities"]).abs().amax(1)
    same = probabilities.cpu().argmax(1) == truth["probabilities"].argmax(1)
    found = {
        "steps equal": (share(apart == 0), allowed.steps_equal),
        "fewer steps apart": (-int(apart.max()), -allowed.steps_apart),
        "pixels within 1e-5": (share(pixels <= 1e-5), allowed.pixels),
        f"probabilities within {allowed.probability}": (share(off <= allowed.probability), allowed.within),
        "decisions equal": (share(same), allowed.decisions),
    }
    assert not {name: (got, least) for name, (got, least) in found.items() if got < least}


def share(these):
    return float(these.double().mean())


def by_ours(allowed, *, model_dtype=torch.float32, device="cpu", **options):
    checkpoint = subject()
    checkpoint.model.to(device, model_dtype)
    defense = ActiveDefense.from_checkpoint(checkpoint, seed=SEED, **{"compile": False, **options})
    answers = defense.defend(shipped().to(model_dtype))
    close_enough(allowed, answers.images, answers.steps, answers.logits.exp())
    return answers


@pytest.mark.slow  # the naive loop in double precision
def test_the_stored_answers_are_the_naive_loop_s_of_today():
    for name, found in references().items():
        assert_close(found, stored()[name], rtol=0, atol=1e-9 if found.dtype == torch.float64 else 1e-6)


def test_ours_in_double_precision():
    answers = by_ours(DOUBLE, model_dtype=torch.float64)

    assert_close(answers.loss.double(), stored()["loss"], rtol=1e-6, atol=0)


@pytest.mark.slow  # the naive loop
def test_the_naive_loop_in_single_precision():
    checkpoint = subject()
    ends = naive(
        Subject(ActiveDefense.from_checkpoint(checkpoint, seed=SEED, compile=False), shipped()),
        torch.float32,
        batch=COUNT,
    )

    with torch.no_grad():
        close_enough(SINGLE, ends.images, ends.steps, checkpoint.model(ends.images).softmax(1))


@pytest.mark.parametrize("slots", [1, 7, 64])
def test_ours_in_single_precision(slots):
    answers = by_ours(SINGLE, slots=slots)

    # Where the steps are others, so is the loss that they end at.
    same = answers.steps == stored()["steps"]
    assert_close(answers.loss[same].double(), stored()["loss"][same], rtol=1e-2, atol=0)


@pytest.mark.slow  # compiles
def test_ours_compiled():
    by_ours(SINGLE, compile=True, deterministic=True, slots=8)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float16, HALF), (torch.bfloat16, BFLOAT)])
def test_sixteen_bits(dtype, allowed):
    by_ours(allowed, dtype=dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(subject(), folder, shape=(1, 28, 28))
    return folder


def by_engine(allowed, folder, **options):
    from fastdef.export.engine import load_engine

    with load_engine(folder, **options) as engine:
        result = engine(shipped().numpy(), seed=SEED)
    close_enough(allowed, *(torch.from_numpy(part) for part in (result.smoothed, result.steps, result.probabilities)))


@pytest.mark.slow
@pytest.mark.parametrize("driven", [False, True])
def test_an_export_in_onnx_runtime(folder, driven):
    by_engine(SINGLE, folder, driven=driven)


@pytest.mark.parametrize("name", ["undefended", "afa", "surrogate"])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_the_classifiers_alone(name, dtype, apart):
    """Without a loop there is no sign to flip, and rounding stays rounding."""
    model = load(ASSETS / f"{'smoothing' if name == 'undefended' else name}.safetensors").model.to(dtype)

    with torch.no_grad():
        found = model(shipped().to(dtype)).double().softmax(1)

    assert_close(found, stored()[f"{name}.probabilities"], rtol=0, atol=apart)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float32, SINGLE), (torch.float16, HALF), (torch.bfloat16, BFLOAT)]
)
def test_a_gpu(dtype, allowed, compile):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        by_ours(allowed, device="cuda", dtype=dtype, compile=compile)


@pytest.mark.gpu
@pytest.mark.parametrize("driven", [False, True])
def test_tensorrt(folder, tmp_path, driven):
    from fastdef.export.tensorrt_engines import PACKAGES, EngineOptions, export_engines

    if not any(find_spec(package) for package in PACKAGES):
        pytest.skip(f"needs {' or '.join(PACKAGES)}")

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    export_engines(tmp_path, options=EngineOptions(batches=(1, 8, 64)))

    by_engine(HALF, tmp_path, driven=driven, providers=["TensorRT"])  # TensorRT may compute float32 in TF32
