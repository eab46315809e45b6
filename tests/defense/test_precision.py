"""A defense that is left to choose computes in bfloat16 where that decides alike and is fast."""

import copy

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


def test_what_was_seen_holds_for_the_parameters_that_it_was_seen_with(model, images, fast_here):
    config = {"kind": "active", "beta": 3.0, "delta": 0.01, "bfloat16": True}

    assert ActiveDefense.from_config(model, config, dtype="auto", compile=False).dtype == torch.bfloat16
    other = ActiveDefense.from_config(model, config, dtype="auto", compile=False, delta=0.02)
    assert other.dtype == torch.float32
    assert "bfloat16" not in other.config()


@pytest.mark.parametrize("value", ["no", 1, [True]])
def test_a_file_that_says_neither_is_refused(model, value):
    with pytest.raises(ValueError, match="bfloat16 is true or false, got"):
        ActiveDefense.from_config(model, {"kind": "active", "bfloat16": value})


def test_a_model_in_float64_stays_in_that(model, images, fast_here):
    defense = ActiveDefense(copy.deepcopy(model).double(), dtype="auto", beta=3.0, compile=False, slots=8)
    defense.calibrate(images)

    assert defense.dtype == torch.float32  # of a model in float32, which this is not
    assert "bfloat16" not in defense.config()
    assert defense.defend(images[:2]).images.dtype == torch.float64


def test_a_comparison_leaves_the_defense_as_it_was_whatever_happens(model, images, monkeypatch):
    defense = ActiveDefense(model, dtype="auto", beta=3.0, compile=False, slots=8, delta=1e9)
    before = defense.defend(images).logits
    looks = defense.stats.slot_steps
    defend = ActiveDefense.defend

    def interrupted(self, *args, **options):
        defend(self, *args, **options)
        if self._steps._dtype == torch.bfloat16:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ActiveDefense, "defend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            defense.calibrate(images)
    defense.delta = 1e9

    assert defense.stats.slot_steps == looks
    assert torch.equal(defense.defend(images).logits, before)


def test_both_precisions_are_given_the_same_noise_though_it_is_drawn_from_the_system(model, images, monkeypatch):
    defense = ActiveDefense(model, dtype="auto", beta=3.0, compile=False, slots=8, seed=None)
    seeds, defend = [], ActiveDefense.defend
    monkeypatch.setattr(
        ActiveDefense, "defend", lambda self, *a, **k: (seeds.append(self.seed), defend(self, *a, **k))[1]
    )

    defense.calibrate(images)

    assert seeds == [defense.seed] * 2


def test_a_copy_that_was_left_to_choose_still_does(model, images, fast_here):
    defense = ActiveDefense(model, dtype="auto", beta=3.0, compile=False, slots=8)
    other = copy.deepcopy(defense)
    other.calibrate(images)

    assert (defense.dtype, other.dtype) == (torch.float32, torch.bfloat16)
