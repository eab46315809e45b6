import copy
import io
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fastdef import checkpoint
from fastdef.nn import (
    AFA2d,
    WeightGenerator,
    architecture_of,
    branch,
    build,
    convert_to_afa,
    convert_to_multi_bn,
    fixed_fusing_weight,
    fusing_weights,
    parse_architecture,
    prefix,
)

PLACEMENTS = ["shared", "layerwise"]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()  # what one code object may be compiled to is limited, over all tests together


def branched(name="wrn-10-1", branches=3):
    """A model whose branches differ, as those of a trained one do."""
    torch.manual_seed(0)
    model = convert_to_multi_bn(build(parse_architecture(name)), branches)
    for value in model.state_dict().values():
        if value.ndim == 2 and value.shape[0] == branches and value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5)
    return model.eval()


def afa(placement, name="wrn-10-1"):
    model = convert_to_afa(branched(name), placement=placement, hidden=4)
    spread(model)
    return model


def small(placement):
    """Two dual batch norms, which is enough for a compiler, and quick."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
    norms = [nn.BatchNorm2d(channels) for channels in (4, 5)]
    layers = convolutions[0], norms[0], nn.ReLU(), convolutions[1], norms[1], nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = convert_to_multi_bn(nn.Sequential(*layers), 2)
    for value in model.state_dict().values():
        if value.ndim == 2:
            value.copy_(torch.rand(value.shape) + 0.5)
    model = convert_to_afa(model.eval(), placement=placement, stem="0", hidden=4)
    spread(model)
    return model


def spread(model):
    """Make W0 depend on the image, which a fresh generator's hardly does."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, WeightGenerator):
            for layer in module.layers:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(layer.weight)
                    layer.weight.data *= 2


def images(n=4, seed=2):
    """Images of different brightness, since a mean over pixels hides all else of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 8, 8, generator=generator) * torch.rand(n, 1, 1, 1, generator=generator)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["wrn-10-1", "preactresnet-18", "resnet-18"])
def test_at_one_and_at_zero_the_model_is_the_outermost_branch(placement, name):
    model = branched(name)
    with branch(model, 0):
        clean = model(images())
    with branch(model, 2):
        attacked = model(images())
    convert_to_afa(model, placement=placement)

    with fixed_fusing_weight(model, 1.0):
        torch.testing.assert_close(model(images()), clean)
    with fixed_fusing_weight(model, 0.0):
        torch.testing.assert_close(model(images()), attacked)


def test_a_dual_batch_norm_is_the_weighted_sum_of_its_branches():
    model = afa("shared")
    dual, w0 = model.block1.layer[0].bn1, torch.tensor([0.0, 0.3, 1.0])
    x = torch.randn(3, 16, 5, 7)

    out = dual.fuse(x, w0)

    w0 = w0[:, None, None, None]
    torch.testing.assert_close(out, w0 * dual.bn0(x) + (1 - w0) * dual.bn1(x), atol=1e-6, rtol=1e-6)


def test_shared_has_one_weight_a_sample_of_the_stems_output():
    model = afa("shared")

    _, w0 = fusing_weights(model, images())

    stem = prefix(model, "conv1")(images())
    torch.testing.assert_close(w0, model.conv1.weight_generator(stem)[:, None])
    assert w0.std() > 0.01


def test_layerwise_has_a_weight_for_each_dual_batch_norm():
    model = afa("layerwise")

    _, w0 = fusing_weights(model, images())

    duals = [module for module in model.modules() if isinstance(module, AFA2d)]
    assert w0.shape == (4, len(duals))
    first = model.block1.layer[0].bn1
    torch.testing.assert_close(w0[:, 0], first.weight_generator(prefix(model, "conv1")(images())))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_logits_and_weights_of_one_forward_both_lead_back_to_the_image(placement):
    model = afa(placement)
    x = images().requires_grad_()

    logits, w0 = fusing_weights(model, x)

    assert torch.equal(logits, model(x))
    (through_logits,) = torch.autograd.grad(logits.sum(), x, retain_graph=True)
    (through_weights,) = torch.autograd.grad(F.binary_cross_entropy(w0, torch.zeros_like(w0)), x)
    assert through_logits.abs().sum() > 0
    assert through_weights.abs().sum() > 0


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_only_the_generators_train(placement):
    model = afa(placement).train()
    duals = [module for module in model.modules() if isinstance(module, AFA2d)]
    assert not any(norm.training for dual in duals for norm in (dual.bn0, dual.bn1))
    before = copy.deepcopy(model.state_dict())

    F.cross_entropy(model(images()), torch.arange(4)).backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1.0).step()

    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all("weight_generator" in key for key in changed)
    generators = [module for module in model.modules() if isinstance(module, WeightGenerator)]
    assert all(p.grad.abs().sum() > 0 for module in generators for p in module.layers[-1].parameters())
    assert any(key.endswith("running_mean") for key in changed)


def test_a_dual_batch_norm_freezes_the_two_it_is_given():
    norms = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    AFA2d(*norms, None)

    assert not any(norm.training or norm.weight.requires_grad or norm.bias.requires_grad for norm in norms)


def test_a_new_generator_has_the_mode_and_dtype_of_the_model():
    model = convert_to_afa(branched().double())

    assert not any(module.training for module in model.modules())
    assert {value.dtype for value in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_compiles_into_one_graph_with_weights_fixed_and_free(placement):
    model = small(placement)
    x = images().requires_grad_()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    both = torch.compile(lambda x: fusing_weights(model, x), fullgraph=True, backend="aot_eager")

    for w0 in (None, 0.25, 0.75, torch.rand(4)):
        if w0 is None:
            torch.testing.assert_close(compiled(x), model(x))
            continue
        with fixed_fusing_weight(model, w0):
            torch.testing.assert_close(compiled(x), model(x))

    torch.testing.assert_close(both(x), fusing_weights(model, x))
    gradients = [torch.autograd.grad(f(x).sum(), x)[0] for f in (compiled, model)]
    torch.testing.assert_close(*gradients)


def test_many_fixed_blends_compile_once():
    model = small("shared")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for step in range(11):
        with fixed_fusing_weight(model, step / 10):
            torch.testing.assert_close(compiled(images()), model(images()))

    assert len(graphs) == 1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_it_traces_and_exports_and_nothing_of_the_trace_stays_behind(placement):
    model = afa(placement)

    traced = make_fx(model)(images())
    exported = torch.export.export(model, (images(),)).module()

    for function in (traced, exported):
        torch.testing.assert_close(function(images(seed=3)), model(images(seed=3)))
    assert not any("fastdef" in str(node.target) for node in traced.graph.nodes)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("compiled", [False, True])
def test_threads_that_run_one_model_at_once_do_not_meet(placement, compiled):
    model = small(placement)
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    batches = [images(2, seed) for seed in range(4)]  # equal shapes: a foreign weight would fit
    expected = [model(batch) for batch in batches]
    run(batches[0])
    wrong = []

    def work(mine):
        for _ in range(20):
            if mine == 3:
                with fixed_fusing_weight(model, 0.5):
                    run(batches[mine])
            elif not torch.allclose(run(batches[mine]), expected[mine], atol=1e-6):
                wrong.append(mine)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_prefix_stops_early_and_leaves_nothing_for_the_next_forward(placement):
    model = afa(placement)
    expected = model(images(seed=3))

    features = prefix(model, "block1")(images())

    assert features.shape == (4, 16, 8, 8)
    logits, w0 = fusing_weights(model, images(seed=3))
    assert torch.equal(logits, expected)
    assert w0.shape[1] == (1 if placement == "shared" else 7)


def test_a_part_of_a_shared_model_does_not_run_on_a_weight_of_another_batch():
    model = afa("shared")
    model(images())

    with pytest.raises(ValueError, match="fusing weight of the stem"):
        model.block1(torch.zeros(4, 16, 8, 8))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_copy_is_a_model_of_its_own(placement):
    model = afa(placement)
    expected = model(images())
    pickled = io.BytesIO()
    torch.save(model, pickled)
    pickled.seek(0)

    for copied in (copy.deepcopy(model), torch.load(pickled, weights_only=False)):
        assert torch.equal(copied(images()), expected)
        spread_differently(copied)
        assert not torch.equal(copied(images()), expected)
        assert torch.equal(model(images()), expected)
        with fixed_fusing_weight(copied, 1.0):
            assert torch.equal(model(images()), expected)


def spread_differently(model):
    for module in model.modules():
        if isinstance(module, WeightGenerator):
            nn.init.constant_(module.layers[-1].bias, 9.0)


def test_a_model_that_runs_its_children_in_order_does_not_run_the_generator():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    convert_to_afa(convert_to_multi_bn(model, 2), stem="0")

    assert model(images()).shape == (4, 4, 6, 6)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_model_file_gives_the_same_model_back(tmp_path, placement):
    model = afa(placement)
    architecture = architecture_of(model)
    assert [conversion["name"] for conversion in architecture["conversions"]] == ["multi_bn", "afa"]

    checkpoint.save(tmp_path / "m.safetensors", model, architecture=architecture, classes=[str(i) for i in range(10)])
    loaded = checkpoint.load(tmp_path / "m.safetensors").model

    assert torch.equal(loaded(images()), model(images()))
    assert torch.equal(fusing_weights(loaded, images())[1], fusing_weights(model, images())[1])
    frozen = {key for key, value in loaded.named_parameters() if not value.requires_grad}
    assert frozen == {key for key, value in model.named_parameters() if not value.requires_grad}


def test_weights_are_float32_and_finite_under_autocast():
    model = afa("shared")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, w0 = fusing_weights(model, images())

    assert w0.dtype == torch.float32
    torch.testing.assert_close(logits.float(), model(images()), atol=0.2, rtol=0.1)  # bf16 has 8 bits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convert_to_afa(nn.Conv2d(3, 3, 1)), "two branches or more"),
        (lambda: convert_to_afa(branched(branches=1)), "two branches or more"),
        (lambda: convert_to_afa(branched(), placement="stem"), "out of shared, layerwise, got 'stem'"),
        (lambda: convert_to_afa(branched(), stem="conv2"), "got 'conv2'; did you mean"),
        (lambda: convert_to_afa(branched(), stem="block1"), "a stem that is a Conv2d"),
        (lambda: convert_to_afa(branched(), hidden=0), "hidden to be a positive integer, got 0"),
        (lambda: fusing_weights(nn.Flatten(), images()), "fusing_weights needs a model made by convert_to_afa"),
        (lambda: fixed_fusing_weight(afa("shared"), 1.5).__enter__(), r"W0 in \[0, 1\], got 1.5"),
        (lambda: fixed_fusing_weight(afa("shared"), torch.ones(2, 1)).__enter__(), r"or \(N,\), got shape \(2, 1\)"),
        (lambda: AFA2d(nn.BatchNorm2d(2), nn.BatchNorm2d(3), None), "one width, got 2 and 3"),
        (lambda: AFA2d(nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), None), "affine and running statistics"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
