import pytest
import torch

from fastdef.evaluation.shift import Watch
from fastdef.nn import convert_to_afa, convert_to_multi_bn, fusing_weights
from tests.evaluation.tiny import Small


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def images():
    """From a dark one to a bright one."""
    levels = torch.linspace(0.1, 1, 7).view(-1, 1, 1, 1)
    return levels * torch.rand(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc"])
def test_mean_and_variance_of_each_channel_are_those_of_all_batches_together(plain, images, layer):
    watch = Watch(plain, layer)
    features = []
    handle = plain.get_submodule(layer).register_forward_hook(lambda module, given, output: features.append(output))

    with torch.no_grad():
        logits = torch.cat([watch(images[:4]), watch(images[4:])])

    handle.remove()
    values = torch.cat(features).double().transpose(0, 1).flatten(1)
    found = watch.shift()
    assert found.mean == pytest.approx(values.mean(1).tolist())
    assert found.variance == pytest.approx(values.var(1, correction=0).tolist())
    assert found.w1 is None
    assert torch.equal(logits, torch.cat([plain(images[:4]), plain(images[4:])]))


@pytest.mark.parametrize("placement", ["shared", "layerwise"])
def test_the_weight_is_the_mean_over_an_image_s_layers_and_its_deviation_that_over_images(plain, images, placement):
    model = convert_to_afa(convert_to_multi_bn(plain, 2), placement=placement, hidden=8).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=generator))  # no two W0 alike
    watch = Watch(model, "conv2")

    with torch.no_grad():
        watch(images[:4])
        watch(images[4:])
        _, w0 = fusing_weights(model, images)

    each = [1 - sum(row) / len(row) for row in w0.tolist()]
    mean = sum(each) / 7
    deviation = (sum((one - mean) ** 2 for one in each) / 7) ** 0.5
    assert deviation > 1e-3
    assert watch.shift().w1 == pytest.approx((mean, deviation), rel=1e-4)
