"""Batch norms of other code that carry what follows the norm, such as an activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdef.nn import (
    branch,
    convert_to_afa,
    convert_to_multi_bn,
    fixed_fusing_weight,
    keep_branch,
    prefix,
    set_branch,
)
from tests.timm_import import import_timm

# Its stem, for AFA, and the smallest image its strides allow.
NETWORKS = {
    "densenet121": ("features.conv0", 32),
    "efficientnet_b0": ("conv_stem", 32),
    "mobilenetv3_small_050": ("conv_stem", 32),
    "regnety_002": ("stem.conv", 32),
    "resnet18": ("conv1", 32),
}


def spread(model):
    """Statistics and affines that differ from the initial ones, so that a lost activation shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                value.detach().copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.double().eval()


class Activated(nn.BatchNorm2d):
    """Runs two children after the norm, one with weights and one that draws."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.drop = nn.Dropout(0.25)
        self.act = nn.PReLU(channels)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def handmade():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), Activated(4, momentum=0.3), nn.Conv2d(4, 5, 3), Activated(5)
    return spread(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_timm_network_gives_what_the_network_gives(name):
    stem, size = NETWORKS[name]
    model = spread(import_timm().create_model(name, num_classes=7))
    images = torch.rand(2, 3, size, size, dtype=torch.float64)
    expected = model(images)

    model = convert_to_multi_bn(model, 2)
    with branch(model, None):
        torch.testing.assert_close(model(torch.cat([images] * 2)), torch.cat([expected] * 2))
    model = convert_to_afa(model, stem=stem, hidden=4)

    torch.testing.assert_close(model(images), expected)
    with fixed_fusing_weight(model, 0.3):
        torch.testing.assert_close(model(images), expected)


def test_a_subclass_that_runs_children_after_the_norm_is_converted_there_and_back():
    model, images = handmade(), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    names, expected = list(model.state_dict()), model(images)
    features = prefix(model, "1")(images)

    model = convert_to_multi_bn(model, 3)
    set_branch(model, 2)
    lifted, lifted_features, lifted_names = model(images), prefix(model, "1")(images), list(model.state_dict())
    model = keep_branch(model, 2)

    assert lifted_names == names == list(model.state_dict())
    torch.testing.assert_close((lifted, lifted_features, model(images)), (expected, features, expected))
    torch.testing.assert_close(convert_to_multi_bn(model, 2)(images), expected)  # and once more


def test_it_trains_as_the_subclass_does():
    model, images = handmade().train(), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    torch.manual_seed(1)
    model(images).sum().backward()
    expected = model[1].act.weight.grad, model[1].weight.grad, model[1].running_mean.clone()

    model = convert_to_multi_bn(handmade().train(), 1)
    torch.manual_seed(1)
    model(images).sum().backward()

    found = model[1].act.weight.grad, model[1].weight.grad[0], model[1].running_mean[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("placement", ["shared", "layerwise"])
def test_the_two_fused_branches_are_followed_by_the_children_once(placement):
    model, images = convert_to_multi_bn(handmade(), 2), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    for k, norm in enumerate((model[1], model[3])):
        norm.bias.detach()[1] -= 1 + k
    with branch(model, 1):
        expected = model(images)

    model = convert_to_afa(model, placement=placement, stem="0", hidden=4)

    with fixed_fusing_weight(model, 0.0):
        torch.testing.assert_close(model(images), expected)


def test_lifting_on_the_meta_device_needs_no_values():
    with torch.device("meta"):
        model = convert_to_multi_bn(nn.Sequential(Activated(4)), 2)

    assert list(model[0].tail()) == ["drop", "act"]
    assert model[0].act.weight.is_meta


class Functional(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Scaled(nn.BatchNorm2d):
    """Differs in training alone."""

    def forward(self, x):
        return super().forward(x * 2 if self.training else x)


class Unfinished(nn.BatchNorm2d):
    def forward(self, x):
        raise NotImplementedError


class Named(Activated):
    def __init__(self, channels):
        super().__init__(channels)
        self.active = self.act

    def forward(self, x):
        return self.act(self.drop(nn.BatchNorm2d.forward(self, x)))


@pytest.mark.parametrize("kind", [Functional, Scaled, Unfinished, Named])
def test_a_forward_that_cannot_be_kept_is_refused_in_one_line_and_nothing_changes(kind):
    model = nn.Sequential(nn.BatchNorm2d(3), kind(3))
    before = list(model)

    with pytest.raises(ValueError, match=rf"^convert_to_multi_bn cannot lift '1': [^\n]*{kind.__name__}[^\n]*$"):
        convert_to_multi_bn(model, 2)

    assert list(model) == before


def test_hooks_that_a_conversion_would_lose_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    handle = model[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="convert_to_multi_bn needs batch norms without forward hooks"):
        convert_to_multi_bn(model, 2)
    handle.remove()

    model = convert_to_multi_bn(model, 2)
    model[1].register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match="convert_to_afa needs batch norms without forward hooks"):
        convert_to_afa(model, stem="0")
    with pytest.raises(ValueError, match="keep_branch needs batch norms without forward hooks"):
        keep_branch(model, 0)
