"""The shipped models on the shipped images: what the README says of them, and that ours is the loop as written."""

import pytest
import torch

from benchmarks.programs import Agreement, Subject, naive, ours
from fastdef import ActiveDefense, load
from fastdef.assets import ASSETS
from fastdef.data import load_dataset
from fastdef.evaluation import evaluate_strengths

AFA = ASSETS / "afa.safetensors"
MODEL = ASSETS / "smoothing.safetensors"
SURROGATE = ASSETS / "surrogate.safetensors"


def shipped(count):
    return load_dataset("fashion-mnist", "test", root=ASSETS).take(count)


def agreement(dtype):
    """Of ours with the naive loop, both in ``dtype``."""
    defense = ActiveDefense.from_checkpoint(load(MODEL), compile=False)
    subject = Subject(defense, shipped(32).floats(0, 32))
    return Agreement.of(ours(subject, dtype, slots=64), naive(subject, dtype, batch=32))


@pytest.mark.slow  # the naive loop in double precision, to its last step; test_references.py has the short form
def test_the_naive_loop_and_ours_agree_on_real_images():
    found = agreement(torch.float64)

    assert found.steps_equal == 1
    assert found.decisions_equal == 1
    assert found.largest <= 1e-5


@pytest.mark.slow
def test_in_single_precision_they_part_only_where_a_sign_flips():
    """Two roundings of one feature that lies at the mean give it two signs, and its step is finite."""
    found = agreement(torch.float32)

    assert found.steps_equal >= 0.95
    assert found.within >= 0.8
    assert found.median <= 1e-6


@pytest.mark.parametrize("path", [MODEL, SURROGATE], ids=lambda path: path.stem)
def test_the_shipped_models_classify_clean_images(path):
    dataset = shipped(512)

    with torch.no_grad():
        answers = load(path).model(dataset.floats(0, 512)).argmax(1)

    assert float((answers == dataset.labels).float().mean()) > 0.88


def test_the_surrogate_is_of_another_form_and_what_is_shipped_stays_small():
    assert load(SURROGATE).architecture["name"] == "resnet"
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 5_000_000


def test_the_shipped_afa_model_stands_a_white_box_attack():
    model, dataset = load(AFA).model, shipped(64)

    found = evaluate_strengths(model, dataset, strengths=(0.0, 8 / 255), steps=5, parts=False)

    clean, attacked = found.rows["AFA"]
    assert clean.value > 0.75
    assert attacked.value > 0.65
    assert all(shift.w1 is not None for shift in found.shifts)
