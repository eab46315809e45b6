import pytest
import torch

from fastdef.nn import MultiBatchNorm2d, WideResNet, branch, convert_to_afa, convert_to_multi_bn, fixed_fusing_weight
from fastdef.runtime import checked
from fastdef.runtime.plain import plain_step


@pytest.fixture
def branched():
    """Three branches whose affines are far apart."""
    torch.manual_seed(0)
    model = convert_to_multi_bn(WideResNet(10, 1, in_channels=1), 3).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MultiBatchNorm2d):
                module.weight.mul_(torch.tensor([[1.0], [2.0], [4.0]]))
    return model


def test_a_step_is_of_the_branch_that_is_active(defense_for, branched, images):
    defense = defense_for(branched, images)
    other = defense_for(branched, images)
    other.delta = defense.delta

    before = defense.defend(images[:4])
    with branch(branched, 2):
        inside, expected = defense.defend(images[:4]), other.defend(images[:4])
    after = defense.defend(images[:4])

    assert torch.equal(inside.images, expected.images)
    assert not torch.equal(inside.images, before.images)
    assert torch.equal(after.logits, before.logits)


def test_slots_that_were_taken_before_a_change_are_not_used_after_it(defense_for, branched, images):
    defense = defense_for(branched, images)
    before = defense.smooth(images[:8])

    with branch(branched, 2):
        stream = defense.stream(iter(images[:12]))
        next(stream)  # on eight slots
    list(stream)  # the rest, on fewer

    assert torch.equal(defense.smooth(images[:8]).images, before.images)


def test_a_step_is_of_the_fusing_weight_that_is_fixed(defense_for, branched, images):
    model = convert_to_afa(branched, hidden=8).eval()
    defense = defense_for(model, images)
    before = defense.smooth(images[:4]).images
    smoothed, expected = [], []

    for w0 in (0.0, 1.0):
        with fixed_fusing_weight(model, w0):
            smoothed.append(defense.smooth(images[:4]).images)
            other = defense_for(model, images)
            other.delta = defense.delta
            expected.append(other.smooth(images[:4]).images)

    assert all(torch.equal(mine, fresh) for mine, fresh in zip(smoothed, expected, strict=True))
    assert not torch.equal(*smoothed)
    assert torch.equal(defense.smooth(images[:4]).images, before)


def test_a_step_is_traced_once_for_all_batch_sizes(defense_for, images, monkeypatch):
    traced = []
    trace = checked.traced_step
    monkeypatch.setattr(checked, "traced_step", lambda *args, **options: (traced.append(1), trace(*args, **options))[1])
    torch.manual_seed(0)
    defense = defense_for(WideResNet(10, 1, in_channels=1).eval(), images)
    traced.clear()

    few, many = defense.smooth(images[:2]), defense.smooth(images[:8])

    assert len(traced) == 1
    torch.testing.assert_close(few.images, many.images[:2], rtol=0, atol=1e-5)


def test_a_step_that_does_not_hold_for_a_batch_is_not_taken_again():
    few, many = torch.rand(2, 1, 6, 6), torch.rand(8, 1, 6, 6)
    right = checked.checked_step(torch.sin, few, dtype=torch.float32)
    wrong = checked.checked_step(torch.cos, few, dtype=torch.float32)

    step = checked.checked_step(torch.sin, many, dtype=torch.float32, known=wrong)

    assert right.any_batch
    assert wrong.any_batch
    assert step is not wrong
    torch.testing.assert_close(step(many), plain_step(torch.sin, many))
    assert checked.checked_step(torch.sin, many, dtype=torch.float32, known=right) is right
