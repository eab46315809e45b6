import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdef.nn import (
    Normalize,
    PreActResNet18,
    ResNet,
    WideResNet,
    branch,
    convert_to_afa,
    convert_to_multi_bn,
    prefix,
)
from fastdef.ops import smoothing_loss_and_field
from fastdef.runtime.passes import BATCH_NORM_TABLE
from fastdef.runtime.trace import traced_step


def afa(model, placement):
    return convert_to_afa(convert_to_multi_bn(model, 2), placement=placement, hidden=8)


MODELS = {
    "wide_resnet": (lambda normalize: WideResNet(10, 1, in_channels=3, normalize=normalize), "block{}"),
    "wide_resnet_deep": (lambda normalize: WideResNet(16, 2, in_channels=3, normalize=normalize), "block{}"),
    "preact_resnet": (lambda normalize: PreActResNet18(in_channels=3, normalize=normalize), "layer{}"),
    "resnet18": (lambda normalize: ResNet(18, in_channels=3, normalize=normalize), "layer{}"),
    "resnet50": (lambda normalize: ResNet(50, in_channels=3, normalize=normalize), "layer{}"),
    "afa_shared": (lambda normalize: afa(WideResNet(10, 1, in_channels=3, normalize=normalize), "shared"), "block{}"),
    "afa_layerwise": (lambda normalize: afa(ResNet(18, in_channels=3, normalize=normalize), "layerwise"), "layer{}"),
}


def trained(model):
    """The model with batch norm statistics and affines that are not the initial ones."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.weight.data.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(module.num_features, generator=generator))
    return model.eval()


def autograd_step(network, images):
    images = images.detach().requires_grad_()
    features = network(images).flatten(1)
    loss = (features - features.mean(1, keepdim=True)).abs().mean(1)
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    return loss.detach(), gradient, features.shape[1]


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_traced_step_equals_autograd(name, group, normalized):
    build, layer = MODELS[name]
    torch.manual_seed(0)
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)) if normalized else None
    network = prefix(trained(build(normalize)).double(), layer.format(group))
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)

    step = traced_step(network, torch.zeros_like(images), dtype=torch.float64)
    loss, direction = step(images)

    expected_loss, gradient, features = autograd_step(network, images)
    assert step.features == features
    atol = 1e-12 if not name.startswith("afa") else 1e-10  # a fusing weight is float32 whatever the model is
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=0 if not name.startswith("afa") else 1e-8)
    torch.testing.assert_close(direction / features, gradient, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("name", MODELS)
def test_traced_step_equals_autograd_in_single_precision(name):
    build, layer = MODELS[name]
    torch.manual_seed(0)
    network = prefix(trained(build(None)), layer.format(1))
    images = torch.rand(2, 3, 12, 12)

    step = traced_step(network, torch.zeros_like(images))
    loss, direction = step(images)

    expected_loss, gradient, features = autograd_step(network, images)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert (direction / features - gradient).norm() < 1e-5 * gradient.norm()


def test_a_model_of_stage_one_is_traced_on_the_branch_that_is_chosen():
    torch.manual_seed(0)
    model = convert_to_multi_bn(trained(WideResNet(10, 1, in_channels=3)).double(), 3)
    with torch.no_grad():
        model.block1.layer[0].bn1.weight[2] *= 2
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    network = prefix(model, "block1")

    with branch(model, 2):
        step = traced_step(network, images, dtype=torch.float64)
        expected, _, _ = autograd_step(network, images)

    torch.testing.assert_close(step(images)[0], expected)
    assert not torch.allclose(expected, autograd_step(network, images)[0])


def by_hand(model, images):
    """The traced step of a WideResNet's block1, by hand: forward with masks, backward by transposed convolutions."""
    conv, conv_t = nn.functional.conv2d, nn.functional.conv_transpose2d

    def norm(bn, x):
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        return x * scale.view(1, -1, 1, 1) + (bn.bias - bn.running_mean * scale).view(1, -1, 1, 1), scale

    tape, x = [], conv(images, model.conv1.weight, padding=1)
    for block in model.block1.layer:
        a, scale1 = norm(block.bn1, x)
        first = a.relu()
        b, scale2 = norm(block.bn2, conv(first, block.conv1.weight, padding=1))
        out = conv(b.relu(), block.conv2.weight, padding=1)
        shortcut = getattr(block, "convShortcut", None)
        tape.append((block, shortcut, a > 0, scale1, b > 0, scale2))
        x = out + (x if shortcut is None else conv(first, shortcut.weight))
    sign = (x - x.mean((1, 2, 3), keepdim=True)).sign()
    gradient = sign - sign.mean((1, 2, 3), keepdim=True)
    for block, shortcut, mask1, scale1, mask2, scale2 in reversed(tape):
        inner = conv_t(gradient, block.conv2.weight, padding=1) * mask2 * scale2.view(1, -1, 1, 1)
        inner = conv_t(inner, block.conv1.weight, padding=1)
        if shortcut is None:
            gradient = gradient + inner * mask1 * scale1.view(1, -1, 1, 1)
        else:
            inner = inner + conv_t(gradient, shortcut.weight)
            gradient = inner * mask1 * scale1.view(1, -1, 1, 1)
    return conv_t(gradient, model.conv1.weight, padding=1)


@pytest.mark.parametrize("depth", [10, 16])
def test_traced_step_equals_the_one_written_out_for_wide_resnets(depth):
    torch.manual_seed(0)
    model = trained(WideResNet(depth, 2, in_channels=1)).double()
    images = torch.rand(2, 1, 14, 14, dtype=torch.float64)

    _, direction = traced_step(prefix(model, "block1"), images, dtype=torch.float64)(images)

    torch.testing.assert_close(direction, by_hand(model, images), rtol=1e-9, atol=1e-12)


def test_traced_step_computes_nothing_for_weights_and_folds_every_inner_batch_norm():
    model = trained(WideResNet(16, 2, in_channels=3))

    step = traced_step(prefix(model, "block1"), torch.zeros(2, 3, 16, 16))

    targets = [str(node.target) for node in step.graph.graph.nodes if node.op == "call_function"]
    assert targets.count("aten.convolution.default") == 2 * 6  # the stem, 2 + 2 in the blocks, a shortcut; both ways
    assert not any("convolution_backward" in target or "batch_norm" in target for target in targets)
    assert targets.count("aten.rsqrt.default") == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.05), (torch.bfloat16, 0.12)])
def test_half_precision_convolutions_keep_loss_and_direction_in_single(dtype, tolerance):
    torch.manual_seed(0)
    network = prefix(trained(WideResNet(10, 2, in_channels=3)), "block1")
    images = torch.rand(2, 3, 16, 16)

    loss, direction = traced_step(network, images, dtype=dtype)(images)

    expected_loss, expected = traced_step(network, images)(images)
    assert loss.dtype == direction.dtype == torch.float32
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance / 20, atol=0)
    assert (direction - expected).norm() < tolerance * expected.norm()  # signs flip near ties
    length = (direction * expected).sum() / expected.square().sum()
    assert abs(length - 1) < tolerance / 10  # those that flip do not make it longer


def test_a_model_in_training_mode_is_refused():
    model = WideResNet(10, 1, in_channels=3).train()

    with pytest.raises(ValueError, match="eval mode"):
        traced_step(prefix(model, "block1"), torch.zeros(1, 3, 8, 8))


class InPlace(nn.Module):
    """A model of other habits: in-place ReLU, grouped and dilated convolution, pooling, bias before batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.GELU(), nn.ConvTranspose2d(8, 6, 3, stride=2)
        )

    def forward(self, x):
        return self.body(self.stem(x)).mean((2, 3))


def test_traced_step_takes_models_of_other_habits():
    torch.manual_seed(0)
    network = prefix(trained(InPlace()).double(), "body")
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)

    _, direction = (step := traced_step(network, images, dtype=torch.float64))(images)

    _, gradient, features = autograd_step(network, images)
    assert step.features == features
    torch.testing.assert_close(direction / features, gradient, rtol=1e-9, atol=1e-12)


class Pooled(nn.Module):
    """Views and expansions that name the batch, as a classifier's own code may have them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)

    def forward(self, x):
        features = self.conv(x)
        pooled = features.view(x.shape[0], 4, -1).mean(2)
        gate = self.gate(pooled.reshape(x.shape[0], 4)).sigmoid()
        return features * gate[:, :, None, None].expand(x.shape[0], 4, *x.shape[2:])


@pytest.mark.parametrize("name", ["afa_shared", "afa_layerwise", "pooled"])
def test_the_graph_takes_other_batches_than_it_was_traced_with(name):
    torch.manual_seed(0)
    network = Pooled() if name == "pooled" else prefix(trained(MODELS[name][0](None)), MODELS[name][1].format(1))

    step = traced_step(network, torch.rand(3, 3, 12, 12))

    for count in (1, 5):
        images = torch.rand(count, 3, 12, 12)
        loss, direction = step(images)
        expected, gradient, features = autograd_step(network, images)
        torch.testing.assert_close(loss, expected)
        assert (direction / features - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("variant", BATCH_NORM_TABLE, ids=str)
def test_every_device_s_batch_norm_is_replaced_by_as_many_tensors_as_it_returns(variant):
    settings = {"training": False, "momentum": 0.1, "exponential_average_factor": 0.1, "eps": 1e-5, "epsilon": 1e-5}
    given = [settings.get(argument.name) for argument in variant._schema.arguments][5:]
    norm = torch.nn.BatchNorm2d(3).eval()
    norm.running_mean.uniform_(), norm.running_var.uniform_(1, 2)
    x = torch.rand(2, 3, 4, 4)

    y, *rest = BATCH_NORM_TABLE[variant](x, norm.weight, norm.bias, norm.running_mean, norm.running_var, *given)

    torch.testing.assert_close(y, norm(x))
    assert 1 + len(rest) == len(variant._schema.returns)


def test_on_a_gpu_the_graph_stays_there_and_asks_for_our_kernels():
    """Traced here and run on fake CUDA tensors, which know device, shape and dtype of every operation and no values."""
    torch.manual_seed(0)
    graph = traced_step(prefix(trained(WideResNet(10, 1, in_channels=3)), "block1"), torch.rand(4, 3, 12, 12)).graph
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(4, 3, 12, 12, device="cuda")
        graph._apply(lambda value: torch.empty(value.shape, dtype=value.dtype, device="cuda"))

        loss, direction = graph(images)
        _, field = smoothing_loss_and_field(torch.empty(4, 16, 12, 12, device="cuda", dtype=torch.float16))

    assert (loss.device.type, loss.shape, loss.dtype) == ("cuda", (4,), torch.float32)
    assert (direction.device.type, direction.shape, direction.dtype) == ("cuda", (4, 3, 12, 12), torch.float32)
    assert (field.device.type, field.shape, field.dtype) == ("cuda", (4, 16, 12, 12), torch.float16)
