import contextlib

import pytest
import torch

from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet

MODES = {
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compile", [False, True])
def test_answers_are_bitwise_the_same_in_every_mode_of_the_caller(defense_for, model, images, mode, compile):
    plain = defense_for(model, images, compile=compile, deterministic=True)
    defense = ActiveDefense(model, beta=3.0, compile=compile, deterministic=True, slots=8, seed=3)

    with MODES[mode]():
        defense.calibrate(images)
        inside = defense.defend(images[:4])
    after = defense.defend(images[:4])

    expected = plain.defend(images[:4])
    assert defense.delta == plain.delta
    for answers in (inside, after):
        assert torch.equal(answers.images, expected.images)
        assert torch.equal(answers.logits, expected.logits)
    with MODES[mode]():
        assert torch.equal(plain.defend(images[:4]).logits, expected.logits)


@pytest.mark.parametrize("mode", MODES)
def test_a_masked_step_is_traced_in_every_mode_of_the_caller(defense_for, model, images, mode):
    defense = defense_for(model, images)
    state = images[:2], torch.zeros(2, dtype=torch.int32), torch.ones(2, dtype=torch.int32), torch.tensor(1e-9)

    with MODES[mode]():
        step = defense.masked_step(images[:2])

    assert torch.equal(step(*state)[0], defense.masked_step(images[:2])(*state)[0])


@pytest.mark.parametrize("made", [torch.inference_mode, contextlib.nullcontext])
def test_a_stream_that_inference_mode_began_ends_outside(defense_for, model, images, made):
    defense = defense_for(model, images)

    with torch.inference_mode():
        stream = defense.stream(iter(images))
        first = next(stream)
    with made():
        rest = list(stream)

    expected = defense.defend(images).logits
    torch.testing.assert_close(torch.stack([a.logits for a in (first, *rest)]), expected, rtol=1e-4, atol=1e-4)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = WideResNet(10, 1, in_channels=1).eval()

    with pytest.raises(ValueError, match=r"a model made outside torch\.inference_mode, got weights made inside"):
        ActiveDefense(model, compile=False)
