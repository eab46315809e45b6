import pytest
import torch
from torch import nn

from fastdef.nn import architecture_of, build, normalize_features, normalized, parse_architecture, prefix, tap
from fastdef.ops import smoothing_loss
from fastdef.runtime.trace import traced_step


def wrn():
    return build(parse_architecture("wrn-10-1", in_channels=1))


class Plain(nn.Module):
    """A convolution that is followed by nothing but the look at it."""

    def __init__(self, **options):
        super().__init__()
        self.in_channels = 2
        self.features = nn.Conv2d(2, 5, 3, **options)

    def forward(self, x):
        return self.features(x)


def loss_of(model, images):
    with tap(model, normalized("features")) as tapped:
        model(images)
        return smoothing_loss(tapped.features)


def test_the_classifier_answers_as_before_and_keeps_its_mode():
    model, images = wrn(), torch.rand(4, 1, 12, 12)
    model(images)
    wanted = model.eval()(images)

    normalize_features(model)

    assert torch.equal(model(images), wanted)
    assert not any(module.training for module in model.modules())


def test_scaling_and_shifting_the_features_leaves_the_loss_in_training():
    images = torch.rand(4, 2, 9, 9)
    model = normalize_features(Plain(), layer="features")
    before = loss_of(model, images)

    with torch.no_grad():
        model.features.weight.mul_(10)
        model.features.bias.mul_(10).add_(torch.tensor([0.0, 1.0, -2.0, 3.0, 50.0]))

    torch.testing.assert_close(loss_of(model, images), before, rtol=1e-3, atol=0)  # batch norm's eps is 1e-5


def test_the_gradient_in_training_equals_finite_differences():
    torch.manual_seed(0)
    model = normalize_features(Plain(bias=False).double(), layer="features")
    images = torch.rand(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x: loss_of(model, x), images)


def test_the_traced_step_of_a_trained_model_equals_autograd():
    torch.manual_seed(0)
    model, images = normalize_features(wrn()), torch.rand(3, 1, 12, 12)
    for _ in range(20):
        model(torch.rand(8, 1, 12, 12))
    network = prefix(model.eval(), normalized("block1"))

    loss, direction = traced_step(network, images)(images)

    wanted = smoothing_loss(network(images.requires_grad_()))
    (gradient,) = torch.autograd.grad(wanted.sum(), images)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(direction / (16 * 12 * 12), gradient, rtol=1e-2, atol=1e-6)  # signs at the mean may flip


def test_a_model_is_built_anew_with_it():
    model = normalize_features(wrn())

    again = build(architecture_of(model))

    again.load_state_dict(model.state_dict())
    assert again.block1.normalized.num_features == 16
    assert "block1.normalized.running_var" in again.state_dict()


def test_what_cannot_be_normalized_is_refused():
    model = normalize_features(wrn())

    with pytest.raises(ValueError, match="not been given before, got 'block1'"):
        normalize_features(model)
    with pytest.raises(ValueError, match="needs a layer of WideResNet, got 'block9'"):
        normalize_features(model, layer="block9")
    with pytest.raises(ValueError, match=r"\(N, C, H, W\) features, but 'fc' gave \(1, 10\)"):
        normalize_features(model, layer="fc")


def test_a_training_step_compiles_into_one_graph():
    model = normalize_features(Plain(), layer="features")
    images = torch.rand(4, 2, 9, 9)

    with tap(model, normalized("features")) as tapped:
        step = torch.compile(
            lambda x: (model(x), smoothing_loss(tapped.features))[1], fullgraph=True, backend="aot_eager"
        )
        got = step(images)

    torch.testing.assert_close(got, loss_of(model, images))
