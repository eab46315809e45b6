import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdef.nn import (
    MultiBatchNorm2d,
    WideResNet,
    architecture_of,
    branch,
    build,
    convert_to_multi_bn,
    keep_branch,
    parse_architecture,
    set_branch,
)

TINY = parse_architecture("wrn-10-1")


def test_a_lifted_model_gives_each_segment_what_the_model_gave_it():
    model = build(TINY)
    images = torch.rand(4, 3, 8, 8)
    model(images)  # running statistics that are not (0, 1)
    expected = model.eval()(images)

    lifted = convert_to_multi_bn(model, 3)

    assert lifted is model
    assert torch.equal(lifted(images), expected)  # before any branch is chosen
    set_branch(lifted, None)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in lifted.modules())
    assert not any(module.training for module in lifted.modules())
    torch.testing.assert_close(lifted(torch.cat([images] * 3)), torch.cat([expected] * 3))


def test_lifting_keeps_dtype_gradients_and_a_shared_layer_shared():
    norm = nn.BatchNorm2d(3, momentum=0.2, eps=1e-3).double()
    norm.weight.requires_grad_(False)
    model = nn.Sequential(norm, nn.ReLU(), norm)

    first, _, second = convert_to_multi_bn(model, 2)

    assert first is second
    assert (first.momentum, first.eps, first.weight.dtype) == (0.2, 1e-3, torch.float64)
    assert (first.weight.requires_grad, first.bias.requires_grad) == (False, True)


def test_a_batch_norm_alone_is_lifted_too():
    assert isinstance(convert_to_multi_bn(nn.BatchNorm2d(3), 2), MultiBatchNorm2d)


def test_build_lifts_by_the_architectures_list_and_a_direct_call_is_added_to_it():
    conversion = {"name": "multi_bn", "branches": 2}

    listed = build({**TINY, "conversions": [conversion]})
    direct = convert_to_multi_bn(build(TINY), 2)

    assert listed.bn1.branches == direct.bn1.branches == 2
    assert architecture_of(listed)["conversions"] == architecture_of(direct)["conversions"] == [conversion]


def test_a_batch_of_segments_has_the_gradient_of_one_branch_after_another():
    model = convert_to_multi_bn(build(TINY).double(), 3)
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6)

    with branch(model, None):
        F.cross_entropy(model(x), y).backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for k, (images, labels) in enumerate(zip(x.chunk(3), y.chunk(3), strict=True)):
        with branch(model, k):
            (F.cross_entropy(model(images), labels) / 3).backward()

    torch.testing.assert_close(together, [p.grad for p in model.parameters()])


def test_branch_holds_inside_the_with_and_what_was_before_comes_back():
    model = convert_to_multi_bn(nn.Sequential(nn.BatchNorm2d(3)), 5)
    set_branch(model, 4)

    with branch(model, range(1, 5)):
        assert model[0].active == (1, 2, 3, 4)
        with branch(model, None):
            assert model[0].active == (0, 1, 2, 3, 4)
        assert model[0].active == (1, 2, 3, 4)

    assert model[0].active == (4,)


def test_what_was_before_comes_back_after_an_error_too():
    model = MultiBatchNorm2d(3, 2)

    with pytest.raises(ValueError, match="equal segments"), branch(model, (0, 1)):
        model(torch.zeros(3, 3, 2, 2))

    with pytest.raises(ValueError, match="needs"), branch(model, 1):
        model(torch.zeros(3, 4, 2, 2))

    assert model.active == (0,)


def test_the_branch_that_is_kept_answers_as_a_plain_model_of_the_plain_architecture():
    model = convert_to_multi_bn(build(TINY), 3)
    images = torch.rand(6, 3, 8, 8)
    with branch(model, None):
        model(images)  # the branches differ from here on
    model.eval()
    with branch(model, 1):
        expected = model(images)

    kept = keep_branch(model, 1)

    assert torch.equal(kept(images), expected)
    assert architecture_of(kept)["conversions"] == []
    plain = build(architecture_of(kept)).eval()
    plain.load_state_dict(kept.state_dict())
    assert torch.equal(plain(images), expected)


def test_a_refused_choice_changes_no_layer():
    model = nn.Sequential(MultiBatchNorm2d(3, 5), MultiBatchNorm2d(3, 2))
    set_branch(model, 1)

    with pytest.raises(ValueError, match=r"branches out of 0 to 1, got \(3,\)"):
        set_branch(model, 3)

    assert model[0].active == (1,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: set_branch(WideResNet(10, 1), 0), "a model with MultiBatchNorm2d in it, got a WideResNet"),
        (lambda: set_branch(MultiBatchNorm2d(3, 2), ()), r"branches out of 0 to 1, got \(\)"),
        (lambda: set_branch(MultiBatchNorm2d(3, 2), -1), r"branches out of 0 to 1, got \(-1,\)"),
        (lambda: convert_to_multi_bn(nn.Linear(2, 2), 2), "a model with a BatchNorm2d, got a Linear"),
        (lambda: convert_to_multi_bn(nn.Sequential(nn.BatchNorm1d(2)), 2), "to be a BatchNorm2d, got BatchNorm1d"),
        (lambda: convert_to_multi_bn(nn.BatchNorm2d(2), 0), "branches to be a positive integer"),
    ],
)
def test_what_has_no_branches_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
