"""DeepMind's robust networks, against their equations written out over a state dict."""

import pytest
import torch
import torch.nn.functional as F

from fastdef import ActiveDefense
from fastdef.checkpoint import import_foreign, load, save
from fastdef.nn import architecture_of, build, first_group, parse_architecture, prefix

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
ACTIVATIONS = {"": F.silu, "-relu": F.relu}


def norm(state, key, x):
    values = (state[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *values)


def same(x, weight, stride):
    """TensorFlow's SAME on even sizes: what there is to pad goes around, or at stride 2 right and below."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)), weight, stride=stride)


def wide_resnet(state, x, act, blocks):
    x = same((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), state["init_conv.weight"], 1)
    for group, stride in enumerate((1, 2, 2)):
        for block in range(blocks):
            key, step = f"layer.{group}.block.{block}", stride if block == 0 else 1
            pre = act(norm(state, f"{key}.batchnorm_0", x))
            if f"{key}.shortcut.weight" in state:
                x = F.conv2d(pre, state[f"{key}.shortcut.weight"], stride=step)
            out = act(norm(state, f"{key}.batchnorm_1", same(pre, state[f"{key}.conv_0.weight"], step)))
            x = x + same(out, state[f"{key}.conv_1.weight"], 1)
    x = act(norm(state, "batchnorm", x)).mean((2, 3))
    return F.linear(x, state["logits.weight"], state["logits.bias"])


def preact_resnet(state, x, act, blocks):
    x = same((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), state["conv_2d.weight"], 1)
    for group, count in enumerate(blocks):
        for block in range(count):
            key, step = f"layer_{group}.{block}", 2 if group and block == 0 else 1
            out = same(act(norm(state, f"{key}.batchnorm_0", x)), state[f"{key}.conv_2d_1.weight"], step)
            out = same(act(norm(state, f"{key}.batchnorm_1", out)), state[f"{key}.conv_2d_2.weight"], 1)
            if f"{key}.shortcut.weight" in state:
                x = same(x, state[f"{key}.shortcut.weight"], step)
            x = x + out
    x = act(norm(state, "batchnorm", x)).mean((2, 3))
    return F.linear(x, state["logits.weight"], state["logits.bias"])


def batchnorm(key, width):
    values = {"weight": torch.rand(width) + 0.5, "bias": torch.rand(width) - 0.5}
    values |= {"running_mean": torch.rand(width) - 0.5, "running_var": torch.rand(width) + 0.5}
    return {f"{key}.{name}": value for name, value in values.items()} | {f"{key}.num_batches_tracked": torch.tensor(7)}


def convolution(key, out, width, side):
    return {f"{key}.weight": torch.randn(out, width, side, side) / (side * width**0.5)}


def wide_state(width, blocks):
    state, planes = convolution("init_conv", 16, 3, 3), 16
    for group in range(3):
        for block in range(blocks):
            key, out = f"layer.{group}.block.{block}", 16 * width * 2**group
            state |= batchnorm(f"{key}.batchnorm_0", planes) | convolution(f"{key}.conv_0", out, planes, 3)
            state |= batchnorm(f"{key}.batchnorm_1", out) | convolution(f"{key}.conv_1", out, out, 3)
            if planes != out:
                state |= convolution(f"{key}.shortcut", out, planes, 1)
            planes = out
    return (
        state | batchnorm("batchnorm", planes) | {"logits.weight": torch.randn(5, planes), "logits.bias": torch.ones(5)}
    )


def preact_state(blocks):
    state, planes = convolution("conv_2d", 64, 3, 3), 64
    for group, count in enumerate(blocks):
        for block in range(count):
            key, out = f"layer_{group}.{block}", 64 * 2**group
            state |= batchnorm(f"{key}.batchnorm_0", planes) | convolution(f"{key}.conv_2d_1", out, planes, 3)
            state |= batchnorm(f"{key}.batchnorm_1", out) | convolution(f"{key}.conv_2d_2", out, out, 3)
            if planes != out:
                state |= convolution(f"{key}.shortcut", out, planes, 3)
            planes = out
    return (
        state | batchnorm("batchnorm", planes) | {"logits.weight": torch.randn(5, planes), "logits.bias": torch.ones(5)}
    )


NETWORKS = {
    "dm-wrn-10-1": (lambda: wide_state(1, 1), lambda *given: wide_resnet(*given, 1)),
    "dm-wrn-16-2": (lambda: wide_state(2, 2), lambda *given: wide_resnet(*given, 2)),
    "dm-preactresnet-18": (lambda: preact_state((2, 2, 2, 2)), lambda *given: preact_resnet(*given, (2, 2, 2, 2))),
}


@pytest.mark.parametrize("suffix", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_foreign_file_becomes_a_model_file_that_answers_as_the_equations_do(tmp_path, name, suffix):
    torch.manual_seed(0)
    make, equations = NETWORKS[name]
    state, images = make(), torch.rand(2, 3, 16, 16)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "theirs.pt")

    described = parse_architecture(name + suffix, num_classes=5, mean=MEAN, std=STD)
    model = import_foreign(tmp_path / "theirs.pt", described)
    save(tmp_path / "ours", model, architecture=architecture_of(model), classes=tuple("abcde"))
    found = load(tmp_path / "ours").model(images)

    expected = equations(state, images, ACTIVATIONS[suffix])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["dm-wrn-10-1", "dm-preactresnet-18", "wrn-10-1", "resnet-18-4", "preactresnet-18"])
def test_each_network_is_defended_at_its_first_group_unless_told_otherwise(name):
    model = build(parse_architecture(name)).eval()
    images = torch.rand(2, 3, 8, 8)

    defense = ActiveDefense(model, max_steps=2, delta=1e-6, compile=False)

    assert defense.layer == first_group(model)
    assert prefix(model, defense.layer)(images).shape[2:] == (8, 8)
    assert defense(images).shape == (2, 10)


def test_a_file_without_the_constants_is_refused_with_those_of_the_common_sets(tmp_path):
    torch.save(wide_state(1, 1), tmp_path / "theirs.pt")

    with pytest.raises(ValueError, match=r"^[^\n]*needs mean and std, which the file lacks[^\n]*0\.4914[^\n]*$"):
        import_foreign(tmp_path / "theirs.pt", parse_architecture("dm-wrn-10-1", num_classes=5))


@pytest.mark.parametrize(
    ("architecture", "need"),
    [
        ({"name": "dm_wide_resnet", "depth": 11, "width": 1}, "depth of 6n"),
        ({"name": "dm_wide_resnet", "depth": 10, "width": 1, "activation": "gelu"}, "out of silu, relu, got 'gelu'"),
        ({"name": "dm_preact_resnet", "depth": 50}, "depth of 18 or 34, got 50"),
        ({"name": "wide_resnet", "depth": 10, "width": 1, "activation": "silu"}, "has no 'activation'"),
    ],
)
def test_other_depths_and_activations_are_refused(architecture, need):
    with pytest.raises(ValueError, match=need):
        build(architecture)
