import inspect
import json
import pickle
import struct
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from fastdef.checkpoint import load, save
from fastdef.nn import build, parse_architecture

CLASSES = ("cat", "dog", "pelican")
WRN = parse_architecture("wrn-10-1", num_classes=3, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build(WRN)
    model(torch.rand(4, 3, 16, 16))  # in training mode: running statistics that are not the initial ones
    return model


def header(path):
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size])


def rewrite(path, *, tensors=None, config=None, metadata=None):
    """The same file with other tensors or another configuration, as an attacker or an accident would make it."""
    stored = safetensors.torch.load_file(path)
    text = header(path)["__metadata__"]["fastdef"]
    text = config(text) if config else text
    tensors = tensors(stored) if tensors else stored
    safetensors.torch.save_file(tensors, path, metadata={"fastdef": text} if metadata is None else metadata)


def test_a_model_comes_back_bit_for_bit(path, model):
    defense, training = {"name": "active", "delta": 0.0124}, {"epochs": 100, "seed": None}

    save(path, model, architecture=WRN, classes=CLASSES, defense=defense, training=training)
    got = load(path)

    assert list(got.model.state_dict()) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(got.model.state_dict()[key], tensor), key
    assert (got.architecture, got.classes) == (WRN, CLASSES)
    assert (got.defense, got.training) == (defense, training)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(got.model(x), model.eval()(x))


def test_a_loaded_model_is_in_eval_mode_and_can_be_trained_on(path, model):
    save(path, model, architecture=WRN, classes=CLASSES)

    got = load(path).model

    assert not any(module.training for module in got.modules())
    got.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in got.parameters())


def test_a_loaded_model_does_not_hang_on_the_file(path, model):
    save(path, model, architecture=WRN, classes=CLASSES)
    got = load(path).model

    path.write_bytes(b"")  # truncated in place: a mapped tensor would now kill the process

    assert torch.equal(got.conv1.weight, model.conv1.weight)


def test_the_same_model_gives_the_same_bytes(tmp_path, model):
    for name in ("a", "b"):
        save(tmp_path / name, model, architecture=WRN, classes=CLASSES)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loading_draws_no_random_number(path, model):
    save(path, model, architecture=WRN, classes=CLASSES)
    before = torch.get_rng_state()

    load(path)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits_is_stored_so_and_loads_as_float32(path, model, dtype):
    save(path, model.to(dtype), architecture=WRN, classes=CLASSES)

    got = load(path).model

    assert header(path)["conv1.weight"]["dtype"] == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert got.conv1.weight.dtype == torch.float32
    assert torch.equal(got.conv1.weight, model.conv1.weight.float())
    assert torch.equal(got.bn1.num_batches_tracked, model.bn1.num_batches_tracked)


def test_memory_layout_does_not_matter(path, model):
    save(path, model.to(memory_format=torch.channels_last), architecture=WRN, classes=CLASSES)

    assert torch.equal(load(path).model.block1.layer[0].conv1.weight, model.block1.layer[0].conv1.weight)


def test_the_file_is_safetensors_with_the_configuration_as_json(path, model):
    save(path, model, architecture=WRN, classes=CLASSES)

    config = json.loads(header(path)["__metadata__"]["fastdef"])

    assert set(config) == {"format", "fastdef", "architecture", "classes", "defense", "training"}
    assert config["format"] == 1
    assert config["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("changes", "need"),
    [
        ({"classes": ("cat", "dog")}, "2 names for 3 classes"),
        ({"classes": ("cat", "dog", 3)}, "list of names"),
        ({"defense": {"delta": float("nan")}}, "what JSON can hold"),
        ({"training": {"schedule": {1, 2}}}, "what JSON can hold"),
        ({"architecture": WRN | {"width": 2}}, r"'block1.layer.0.conv1.weight' needs shape \(32, 16, 3, 3\)"),
        ({"architecture": WRN | {"mean": None, "std": None}}, "'normalize.mean' is not one of the model's"),
        ({"architecture": WRN | {"depth": 11}}, "depth of 6n"),
    ],
)
def test_saving_what_does_not_fit_is_refused_and_writes_nothing(path, model, changes, need):
    arguments = {"architecture": WRN, "classes": CLASSES} | changes

    with pytest.raises(ValueError, match=need):
        save(path, model, **arguments)

    assert not path.exists()


def test_saving_a_wrapped_or_a_double_model_is_refused(path, model):
    with pytest.raises(ValueError, match=r"lacks the tensor 'normalize.mean'"):
        save(path, nn.Sequential(model), architecture=WRN, classes=CLASSES)
    with pytest.raises(ValueError, match=r"needs to be of torch.float32 .* got torch.float64"):
        save(path, model.double(), architecture=WRN, classes=CLASSES)


def test_a_pickle_is_refused_with_the_way_out(path, model):
    for write in (torch.save, lambda state, to: to.write_bytes(pickle.dumps(state))):
        write(model.state_dict(), path)

        with pytest.raises(ValueError, match=r"it is a pickle, and those are never loaded; see `fastdef import`"):
            load(path)


def test_no_length_of_the_header_is_taken_for_a_pickle(path, model):
    starts = set()
    for pad in range(0, 256, 8):  # safetensors rounds the length to 8 bytes
        save(path, model, architecture=WRN, classes=CLASSES, training={"note": "n" * pad})
        starts.add(path.read_bytes()[0])
        load(path)

    assert 0x80 in starts


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(path, model, kept):
    save(path, model, architecture=WRN, classes=CLASSES)
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ValueError, match=r"cannot load .* is not a whole .safetensors file"):
        load(path)


def test_no_file_and_a_folder_are_refused(tmp_path):
    refused = {tmp_path / "none": "there is no such file", tmp_path: "it is a folder, and not a model file"}
    for path, reason in refused.items():
        with pytest.raises(ValueError, match=f"cannot load {path}: {reason}"):
            load(path)


def test_a_safetensors_of_other_code_is_refused(path, model):
    safetensors.torch.save_file({"a": torch.ones(1)}, path)

    with pytest.raises(ValueError, match="without fastdef's configuration"):
        load(path)


def without(key):
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


@pytest.mark.parametrize(
    ("tensors", "need"),
    [
        (without("conv1.weight"), r"lacks the tensor 'conv1.weight' of shape \(16, 3, 3, 3\)"),
        (without("bn1.num_batches_tracked"), "lacks the tensor 'bn1.num_batches_tracked'"),
        (lambda t: t | {"zebra": torch.ones(1), "ant": torch.ones(1)}, "'ant' is not one of the model's"),
        (lambda t: t | {"fc.bias": torch.ones(4)}, r"'fc.bias' needs shape \(3,\), got \(4,\)"),
        (
            lambda t: t | {"fc.bias": torch.ones(3, dtype=torch.int64)},
            "'fc.bias' needs to be of torch.float32 or .* got torch.int64",
        ),
        (
            lambda t: t | {"fc.bias": torch.ones(3, dtype=torch.float64)},
            "'fc.bias' needs to be of torch.float32 or .* got torch.float64",
        ),
        (lambda t: t | {"fc.bias": torch.ones(3, dtype=torch.bool)}, "'fc.bias' needs to be of .*, got BOOL"),
        (lambda t: t | {"bn1.num_batches_tracked": torch.tensor(1.0)}, "needs to be of torch.int64, got torch.float32"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused_by_name(path, model, tensors, need):
    save(path, model, architecture=WRN, classes=CLASSES)
    rewrite(path, tensors=tensors)

    with pytest.raises(ValueError, match=need):
        load(path)


def changed(**changes):
    return lambda text: json.dumps(json.loads(text) | changes)


# Each is what a stranger may write; the last ones ask for much memory, time or stack.
@pytest.mark.parametrize(
    ("config", "need"),
    [
        (lambda text: "", "is not JSON"),
        (lambda text: text[:-1], "is not JSON"),
        (lambda text: "[]", "needs to be an object, got a list"),
        (lambda text: "{}", "format version is None, and this fastdef reads 1"),
        (changed(format=2), "format version is 2, and this fastdef reads 1"),
        (changed(format=True), "format version is True"),
        (changed(more=1), "has an unknown 'more'"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "classes"}), "lacks 'classes'"),
        (changed(architecture=None), "architecture needs to be an object, got None"),
        (changed(architecture={"num_classes": 3}), "a name out of wide_resnet"),
        (changed(classes="abc"), "list of names, got 'abc'"),
        (changed(classes=["a"]), "1 names for 3 classes"),
        (changed(classes=[1, 2, 3]), "list of names"),
        (changed(defense=[]), r"defense needs to be an object or null, got \[\]"),
        (changed(training="long"), "training needs to be an object or null, got 'long'"),
        (changed(defense={"delta": float("inf")}), "not a finite number"),
        (lambda text: text.replace("0.1", "1e999"), "not a finite number"),
        (changed(architecture=WRN | {"width": 65536}), "needs shape"),
        (changed(architecture=WRN | {"depth": 10**30}), "depth of 6n"),
        (changed(architecture=WRN | {"name": "x" * 10**6}), "a name out of"),
        (changed(architecture=WRN | {"conversions": [{"name": "none"}] * 10**4}), "registered name"),
        (lambda text: '{"format": ' + "[" * 10**5, "is not JSON"),
        (lambda text: '{"format": ' + "9" * 10**4 + "}", "is not JSON"),
    ],
)
def test_a_malformed_configuration_is_refused_in_one_short_line(path, model, config, need):
    save(path, model, architecture=WRN, classes=CLASSES)
    rewrite(path, config=config)

    with pytest.raises(ValueError, match=need) as refusal:
        load(path)

    message = str(refusal.value)
    assert message.startswith(f"cannot load {path}: ")
    assert "\n" not in message
    assert len(message) < 600


def test_a_configuration_nested_to_the_edge_of_the_stack_is_refused(path, model):
    save(path, model, architecture=WRN, classes=CLASSES)
    text = header(path)["__metadata__"]["fastdef"]
    used = len(inspect.stack())

    for depth in range(sys.getrecursionlimit() - used - 60, sys.getrecursionlimit() - used):
        deep = "[" * depth + "]" * depth
        rewrite(path, tensors=lambda stored: {}, metadata={"fastdef": text.replace("[0.1, 0.2, 0.3]", deep)})
        with pytest.raises(ValueError, match="cannot load"):
            load(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_refused(path, model):
    save(path, model, architecture=WRN, classes=CLASSES)

    for device in ("cuda", "pigeon"):
        with pytest.raises(ValueError, match=f"cannot move .* to device '{device}'"):
            load(path, device=device)
