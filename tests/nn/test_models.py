import pytest
import torch
import torch.nn.functional as F

from fastdef.nn import Normalize, PreActResNet18, ResNet, WideResNet, build, parse_architecture


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def bn(x, state, key):
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{key}.{name}"] for name in names))


def warm(model):
    """Give batch norms statistics that are not (0, 1), so that a skipped or swapped one shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "running" in name or ("bn" in name and tensor.is_floating_point()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


# The first two are the papers' own numbers, the others those of the public code for CIFAR.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wrn-28-10", 36_479_194),
        ("wrn-16-8", 10_961_370),
        ("resnet-18", 11_173_962),
        ("resnet-34", 21_282_122),
        ("resnet-50", 23_520_842),
        ("resnet-50-64", 23_520_842),
        ("preactresnet-18", 11_172_170),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, count):
    with torch.device("meta"):
        model = build(parse_architecture(name))

    assert parameters(model) == count


def test_wide_resnet_has_the_state_dict_keys_of_trades():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{n}" for n in norm)}
    for group in (1, 2, 3):
        expected.add(f"block{group}.layer.0.convShortcut.weight")
        for block in (0, 1):
            at = f"block{group}.layer.{block}"
            expected |= {f"{at}.conv1.weight", f"{at}.conv2.weight"}
            expected |= {f"{at}.{b}.{n}" for b in ("bn1", "bn2") for n in norm}

    assert set(WideResNet(16, 2).state_dict()) == expected


def test_resnet_has_the_state_dict_keys_of_the_usual_code():
    with torch.device("meta"):
        keys = {key.removesuffix(".weight") for key in ResNet(50).state_dict() if key.endswith(".weight")}

    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    layers = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
    expected = {"conv1", "bn1", "linear"} | {f"layer{g}.0.shortcut.{i}" for g in blocks for i in (0, 1)}
    expected |= {f"layer{g}.{b}.{layer}" for g, n in blocks.items() for b in range(n) for layer in layers}
    assert keys == expected


def test_preact_resnet_has_the_state_dict_keys_of_the_usual_code():
    with torch.device("meta"):
        keys = {key.removesuffix(".weight") for key in PreActResNet18().state_dict() if key.endswith(".weight")}

    expected = {"conv1", "bn", "linear"} | {f"layer{g}.0.shortcut.0" for g in (2, 3, 4)}
    layers = ("bn1", "conv1", "bn2", "conv2")
    expected |= {f"layer{g}.{b}.{layer}" for g in (1, 2, 3, 4) for b in (0, 1) for layer in layers}
    assert keys == expected


def test_wide_resnet_is_trades_forward_written_out():
    model = warm(WideResNet(16, 1, num_classes=5))
    state = model.state_dict()
    x = torch.rand(2, 3, 32, 32)

    out = F.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for block in (0, 1):
            at, stride = f"block{group}.layer.{block}", 2 if group > 1 and block == 0 else 1
            active = F.relu(bn(out, state, f"{at}.bn1"))
            shortcut = state.get(f"{at}.convShortcut.weight")
            skip = out if shortcut is None else F.conv2d(active, shortcut, stride=stride)
            inner = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            out = skip + F.conv2d(F.relu(bn(inner, state, f"{at}.bn2")), state[f"{at}.conv2.weight"], padding=1)
    pooled = F.avg_pool2d(F.relu(bn(out, state, "bn1")), 8).view(2, -1)

    torch.testing.assert_close(model(x), F.linear(pooled, state["fc.weight"], state["fc.bias"]))


def test_resnet_is_the_usual_forward_written_out():
    model = warm(ResNet(18, num_classes=5))
    state = model.state_dict()
    x = torch.rand(2, 3, 16, 16)

    out = F.relu(bn(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1"))
    for group in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{group}.{block}", 2 if group > 1 and block == 0 else 1
            inner = F.relu(bn(F.conv2d(out, state[f"{at}.conv1.weight"], stride=stride, padding=1), state, f"{at}.bn1"))
            inner = bn(F.conv2d(inner, state[f"{at}.conv2.weight"], padding=1), state, f"{at}.bn2")
            if stride == 2:
                out = bn(F.conv2d(out, state[f"{at}.shortcut.0.weight"], stride=2), state, f"{at}.shortcut.1")
            out = F.relu(inner + out)
    pooled = F.avg_pool2d(out, 2).view(2, -1)

    torch.testing.assert_close(model(x), F.linear(pooled, state["linear.weight"], state["linear.bias"]))


def test_preact_resnet_is_the_usual_forward_written_out():
    model = warm(PreActResNet18(num_classes=5))
    state = model.state_dict()
    x = torch.rand(2, 3, 16, 16)

    out = F.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{group}.{block}", 2 if group > 1 and block == 0 else 1
            active = F.relu(bn(out, state, f"{at}.bn1"))
            skip = F.conv2d(active, state[f"{at}.shortcut.0.weight"], stride=2) if stride == 2 else out
            inner = F.conv2d(active, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            out = skip + F.conv2d(F.relu(bn(inner, state, f"{at}.bn2")), state[f"{at}.conv2.weight"], padding=1)
    pooled = F.avg_pool2d(F.relu(bn(out, state, "bn")), 2).view(2, -1)

    torch.testing.assert_close(model(x), F.linear(pooled, state["linear.weight"], state["linear.bias"]))


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-18", "preactresnet-18"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 64), (4, 33)])
def test_every_model_takes_images_of_any_size_and_channels(name, channels, size):
    model = build(parse_architecture(name, num_classes=7, in_channels=channels)).eval()

    with torch.no_grad():
        logits = model(torch.rand(2, channels, size, size))

    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-18", "preactresnet-18"])
def test_normalization_is_the_first_thing_a_model_does(name):
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    plain = build(parse_architecture(name)).eval()
    model = build(parse_architecture(name, mean=mean, std=std)).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(2, 3, 16, 16)

    by_hand = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    torch.testing.assert_close(model(x), plain(by_hand))
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]


@pytest.mark.parametrize(("name", "group"), [("wrn-10-1", "block1"), ("preactresnet-18", "layer1")])
def test_a_preactivation_group_gives_the_raw_sum(name, group):
    model = build(parse_architecture(name)).eval()
    seen = []
    model.get_submodule(group).register_forward_hook(lambda module, inputs, output: seen.append(output))

    model(torch.rand(2, 3, 16, 16))

    assert seen[0].min() < 0


def test_wide_resnet_is_initialized_as_trades_does():
    torch.manual_seed(0)

    model = WideResNet(10, 4)

    weight = model.block3.layer[0].conv2.weight  # 256 channels out: std = sqrt(2 / (9 * 256))
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert not model.fc.bias.any()


@pytest.mark.parametrize(
    ("make", "need"),
    [
        (lambda: WideResNet(12, 1), "depth of 6n [+] 4 .* got 12"),
        (lambda: WideResNet(4, 1), "depth of 6n [+] 4 .* got 4"),
        (lambda: WideResNet(6_000_004, 1), "got 6000004"),
        (lambda: WideResNet(16.0, 1), "got 16.0"),
        (lambda: WideResNet(16, 0), "integer width .* got 0"),
        (lambda: WideResNet(16, 1, num_classes=True), "integer num_classes .* got True"),
        (lambda: ResNet(19), "depth of 18, 34, 50, got 19"),
        (lambda: PreActResNet18(in_channels=-1), "integer in_channels .* got -1"),
        (lambda: Normalize([], []), "got 0 and 0"),
        (lambda: Normalize([0.5], [0.5, 0.5]), "got 1 and 2"),
        (lambda: Normalize([0.5], [0.0]), "stds > 0"),
        (lambda: Normalize([float("nan")], [1.0]), "finite means"),
        (lambda: WideResNet(10, 1, normalize=Normalize([0.5], [0.5])), "3 input channels, its Normalize 1"),
    ],
)
def test_a_size_that_makes_no_model_is_refused(make, need):
    with pytest.raises(ValueError, match=need):
        make()
