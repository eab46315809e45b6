import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdef.nn import build, parse_architecture, prefix, tap


def wrn():
    return build(parse_architecture("wrn-10-1")).eval()


def step(model, tapped, images, labels):
    return F.cross_entropy(model(images), labels) + tapped.features.square().mean()


def test_one_forward_gives_logits_and_features():
    model = wrn()
    x = torch.rand(2, 3, 16, 16)

    with tap(model, "block1") as tapped:
        logits = model(x)
        features = tapped.features

    assert torch.equal(logits, model(x))
    assert torch.equal(features, prefix(model, "block1")(x))


def test_the_gradient_goes_through_the_features():
    model = wrn()
    x, y = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])

    with tap(model, "block1") as tapped:
        got = torch.autograd.grad(step(model, tapped, x, y), model.conv1.weight)

    oracle = F.cross_entropy(model(x), y) + prefix(model, "block1")(x).square().mean()
    torch.testing.assert_close(got, torch.autograd.grad(oracle, model.conv1.weight))


def test_a_compiled_step_is_the_eager_one_for_every_tap():
    model = wrn()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    y = torch.tensor([0, 1])

    # The second tap of a layer, and one of another layer, must not read the first one's features.
    for layer in ("block1", "block1", "block2"):
        x = torch.rand(2, 3, 16, 16)
        with tap(model, layer) as tapped:
            got = compiled(model, tapped, x, y)
            wanted = step(model, tapped, x, y)
            weights = (model.conv1.weight, model.fc.weight)
            torch.testing.assert_close(got, wanted)
            torch.testing.assert_close(torch.autograd.grad(got, weights), torch.autograd.grad(wanted, weights))


def test_nothing_is_left_on_the_model_or_in_memory():
    model = wrn()

    with tap(model, "block1") as tapped:
        model(torch.rand(2, 3, 16, 16))

    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="there was none"):
        _ = tapped.features


def test_features_before_a_forward_are_refused():
    with (
        tap(wrn(), "block1") as tapped,
        pytest.raises(ValueError, match="a forward of the model that reaches 'block1'"),
    ):
        _ = tapped.features


def test_an_output_that_is_not_a_feature_map_is_refused():
    model = nn.Sequential(nn.Flatten(0))

    with tap(model, "0") as tapped:
        model(torch.rand(2, 3))
        with pytest.raises(ValueError, match=r"tap needs \(N, ...\) features"):
            _ = tapped.features


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="tap needs a layer of WideResNet, got 'blok1'"), tap(wrn(), "blok1"):
        pass
