import copy
import threading

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fastdef.nn import build, parse_architecture, prefix


def wrn(name="wrn-10-1"):
    return build(parse_architecture(name)).eval()


def output_of(model, layer, x):
    """The oracle: the layer's output in a whole forward."""
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(x)
    handle.remove()
    return seen[0]


class Forbidden(nn.Module):
    def forward(self, x):
        raise RuntimeError("ran past the layer")


class Branching(nn.Module):
    """Control flow in Python, a layer that only some inputs reach, and an ``except`` that takes every Exception."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.rare = nn.Linear(4, 4)
        self.pair = nn.Identity()
        self.total = nn.Flatten(0)
        self.head = nn.Linear(4, 2)

    def forward(self, x, *, rare=False):
        try:
            out = self.stem(x)
            if rare:
                out = self.rare(out)
        except Exception:
            out = x
        self.pair((out, out))
        self.total(out)
        return self.head(out)


@pytest.mark.parametrize("layer", ["normalize", "conv1", "block1", "block1.layer.0.bn2", "block3", "fc"])
def test_it_gives_what_the_layer_gives_in_the_whole_model(layer):
    model = wrn()
    x = torch.rand(2, 3, 16, 16)

    features = prefix(model, layer)(x)

    assert torch.equal(features, output_of(model, layer, x))


def test_nothing_after_the_layer_runs():
    model = wrn()
    model.block2 = Forbidden()

    assert prefix(model, "block1")(torch.rand(2, 3, 16, 16)).shape == (2, 16, 16, 16)


def test_the_model_is_as_it_was_afterwards_even_when_it_failed():
    model = wrn()
    x = torch.rand(2, 3, 16, 16)
    logits = model(x)
    features = prefix(model, "block1")

    features(x)
    with pytest.raises(RuntimeError):
        features(torch.rand(2, 5, 16, 16))

    assert torch.equal(model(x), logits)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_gradient_in_images_and_weights_is_that_of_the_whole_model():
    model = wrn()
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    wanted = (x, model.conv1.weight)

    got = torch.autograd.grad(prefix(model, "block1")(x).square().sum(), wanted)

    oracle = torch.autograd.grad(output_of(model, "block1", x).square().sum(), wanted)
    torch.testing.assert_close(got, oracle)


def test_it_owns_nothing_so_weights_are_stored_once():
    model = wrn()
    holder = nn.Module()
    holder.model, holder.features = model, prefix(model, "block1")

    assert list(holder.state_dict()) == [f"model.{key}" for key in model.state_dict()]


def test_it_follows_the_model_when_a_layer_is_replaced():
    model = wrn()
    features = prefix(model, "block1")
    model.block1 = nn.Identity()

    assert features(torch.rand(2, 3, 16, 16)).shape == (2, 16, 16, 16)


def test_a_copy_has_a_model_of_its_own():
    model = wrn()
    twin = copy.deepcopy(prefix(model, "conv1"))
    x = torch.rand(1, 3, 8, 8)
    before = twin(x)

    nn.init.zeros_(model.conv1.weight)

    assert torch.equal(twin(x), before)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_traces_it_with_its_gradient(mode):
    model = wrn()
    model.block2 = Forbidden()
    features = prefix(model, "block1")

    def step(x):
        return torch.autograd.grad(features(x).abs().mean(), x)[0]

    def example():
        return torch.rand(2, 3, 16, 16, requires_grad=True)

    traced = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(example())
    x = example()

    torch.testing.assert_close(traced(x), step(x))


def test_another_thread_runs_the_whole_model_meanwhile():
    model = wrn()
    inside, leave = threading.Event(), threading.Event()
    first = threading.get_ident()

    def hold(module, inputs):
        if threading.get_ident() != first:
            inside.set()
            leave.wait(10)

    model.conv1.register_forward_pre_hook(hold)
    x = torch.rand(2, 3, 16, 16)
    got = []
    other = threading.Thread(target=lambda: got.append(prefix(model, "block1")(x)))
    other.start()
    assert inside.wait(10)  # the other thread now stands inside the model, before block1

    logits = model(x)
    own = prefix(model, "block2")(x)
    leave.set()
    other.join(10)

    assert logits.shape == (2, 10)
    assert own.shape == (2, 32, 8, 8)
    assert torch.equal(got[0], output_of(model, "block1", x))


def test_a_prefix_of_a_prefix_is_not_confused():
    model = wrn()
    outer = prefix(nn.Sequential(prefix(model, "block1"), nn.ReLU(), Forbidden()), "1")
    x = torch.rand(2, 3, 16, 16)

    assert torch.equal(outer(x), output_of(model, "block1", x).relu())


def test_a_prefix_that_ends_inside_another_passes_through_it():
    model = wrn()
    whole = nn.Sequential(prefix(model, "block1"), Forbidden())
    whole.add_module("inner", model)  # so that the outer prefix can name a layer that the inner one runs
    x = torch.rand(2, 3, 16, 16)

    assert torch.equal(prefix(whole, "inner.conv1")(x), model.conv1(x))


def test_control_flow_and_a_broad_except_in_the_model_do_no_harm():
    model = Branching()
    x = torch.rand(3, 4)

    assert torch.equal(prefix(model, "stem")(x), model.stem(x))
    assert torch.equal(prefix(model, "rare")(x, rare=True), model.rare(model.stem(x)))


@pytest.mark.parametrize(
    ("layer", "need"),
    [
        ("rare", "never reached 'rare'"),
        ("pair", "one tensor, but 'pair' gave a tuple"),
        ("total", r"\(N, ...\) features, but 'total' gave shape \(12,\)"),
    ],
)
def test_a_layer_without_features_is_refused_on_call(layer, need):
    with pytest.raises(ValueError, match=need):
        prefix(Branching(), layer)(torch.rand(3, 4))


@pytest.mark.parametrize(
    ("layer", "need"),
    [
        ("blok1", "got 'blok1'; did you mean block1"),
        ("zzz", "got 'zzz'; top level: normalize, conv1, block1, block2, block3, bn1, fc"),
        ("", "got ''"),
        (3, "got 3"),
    ],
)
def test_an_unknown_layer_is_refused_with_those_there_are(layer, need):
    with pytest.raises(ValueError, match=need):
        prefix(wrn(), layer)
