"""A defense that is left to choose computes in bfloat16 where that decides alike and is fast."""

import pytest
import torch

from fastdef.cli._shared import tell_dtype
from fastdef.defense import ActiveDefense, precision

HERE = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request, monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: request.param)
    return request.param


@pytest.fixture
def fast_here(monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)


@pytest.fixture
def said(capsys):
    """What the command line prints of it."""
    tell_dtype()
    return lambda: capsys.readouterr().err


def otherwise(monkeypatch):
    """bfloat16 decides otherwise, which a calibration is to see."""
    defend = ActiveDefense.defend

    def wrong(self, *args, **options):
        result = defend(self, *args, **options)
        if self._steps._dtype == torch.bfloat16:
            result.logits[:2] = result.logits[:2].flip(1)
        return result

    monkeypatch.setattr(ActiveDefense, "defend", wrong)


def test_it_is_float32_until_calibrated_and_then_bfloat16_where_that_is_fast(model, images, fast):
    defense = ActiveDefense(model, dtype="auto", beta=3.0, compile=False, slots=8)
    before = defense.dtype
    defense.calibrate(images)

    assert before == torch.float32
    assert defense.dtype == (torch.bfloat16 if fast else torch.float32)
    same = ActiveDefense(model, dtype=defense.dtype, beta=3.0, delta=defense.delta, compile=False, slots=8)
    assert torch.equal(defense.defend(images).logits, same.defend(images).logits)


def test_one_that_decides_otherwise_stays_in_float32(model, images, fast_here, monkeypatch, said):
    defense = ActiveDefense(model, dtype="auto", beta=3.0, compile=False, slots=8)
    otherwise(monkeypatch)

    defense.calibrate(images)

    assert defense.dtype == torch.float32
    assert defense.config()["bfloat16"] is False
    assert "in float32: bfloat16 decided otherwise" in said()


def test_what_calibration_saw_is_kept_for_those_that_are_left_to_choose(model, images, fast, said):
    defense = ActiveDefense(model, dtype="auto", beta=3.0, compile=False)
    defense.calibrate(images)
    config = defense.config()

    left = ActiveDefense.from_config(model, config, dtype="auto", compile=False)
    assert config["bfloat16"] is True
    assert left.dtype == (torch.bfloat16 if fast else torch.float32)
    assert left.config() == config
    assert ActiveDefense.from_config(model, config, compile=False).dtype == torch.float32
    assert said().count("note: the defense computes in") == 2  # once for each that chose


def test_where_nobody_compared_it_stays_in_float32_and_says_so(model, fast_here, said):
    defense = ActiveDefense.from_config(model, {"kind": "active"}, dtype="auto", compile=False)

    assert defense.dtype == torch.float32
    assert "no calibration has compared bfloat16" in said()


def test_another_calibration_forgets_what_was_seen_before(model, images):
    defense = ActiveDefense.from_config(model, {"kind": "active", "bfloat16": True}, compile=False)
    defense.calibrate(images)

    assert "bfloat16" not in defense.config()


def test_images_have_to_be_decided_and_to_converge_alike(model, images):
    defense = ActiveDefense(model, delta=1e9, compile=False)
    result = defense.defend(images.repeat(5, 1, 1, 1)[:100])

    def changed(count):
        other = defense.defend(images.repeat(5, 1, 1, 1)[:100])
        other.converged[:count] ^= True
        return other

    assert precision.agrees(result, changed(2))
    assert not precision.agrees(result, changed(3))


def test_a_device_without_instructions_for_it_is_not_fast():
    assert not precision.fast_bfloat16(torch.device("meta"))
    assert isinstance(precision.fast_bfloat16(HERE), bool)
