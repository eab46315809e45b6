import json
import struct

import pytest
import safetensors.torch
import torch
from torch import nn

import fastdef
from fastdef.nn import Normalize, architecture_of, build, convert_to_afa, convert_to_multi_bn, parse_architecture
from tests.checkpoint import networks
from tests.timm_import import import_timm

OURS = "tests.checkpoint.networks:small"
CLASSES = ("a", "b", "c")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def retell(path, **changes):
    """The same file with another description, as a stranger may write it."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    config = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["fastdef"])
    config["architecture"] |= changes
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"fastdef": json.dumps(config)})


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_a_timm_network_comes_back_by_itself(path, name):
    timm = import_timm()
    arguments = {"num_classes": 3} | ({"img_size": 32} if name.startswith("vit") else {})
    network = timm.create_model(name, **arguments).eval()
    state = torch.get_rng_state()

    fastdef.save(path, network, source=f"timm:{name}", source_args=arguments, classes=CLASSES)
    got = fastdef.load(path)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(got.model(IMAGES), network(IMAGES))
    assert not got.model.training
    assert (got.architecture["source"], got.architecture["in_channels"]) == (f"timm:{name}", 3)


def test_a_network_behind_its_normalization_comes_back_with_it(path):
    network = import_timm().create_model("resnet18", num_classes=3)
    model = nn.Sequential(Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), network).eval()

    fastdef.save(path, model, source="timm:resnet18", source_args={"num_classes": 3}, classes=CLASSES)

    assert torch.equal(fastdef.load(path).model(IMAGES), model(IMAGES))


def test_a_loaded_network_that_was_converted_is_saved_and_loaded_as_that(path):
    network = import_timm().create_model("mobilenetv3_small_050", num_classes=3)
    fastdef.save(path, network, source="timm:mobilenetv3_small_050", source_args={"num_classes": 3}, classes=CLASSES)
    model = convert_to_multi_bn(fastdef.load(path).model, 2)

    fastdef.save(path, model, architecture=architecture_of(model), classes=CLASSES)

    assert torch.equal(fastdef.load(path).model(IMAGES), model(IMAGES))


@pytest.mark.parametrize("placement", ["shared", "layerwise"])
def test_a_network_that_was_converted_comes_back_converted(path, placement):
    network = import_timm().create_model("mobilenetv3_small_050", num_classes=3)
    model = convert_to_afa(convert_to_multi_bn(network, 2), placement=placement, stem="conv_stem", hidden=4).eval()

    fastdef.save(path, model, source="timm:mobilenetv3_small_050", source_args={"num_classes": 3}, classes=CLASSES)

    assert torch.equal(fastdef.load(path).model(IMAGES), model(IMAGES))


def test_a_conversion_that_the_source_makes_itself_is_not_made_twice(path):
    model = convert_to_afa(networks.lifted(), hidden=4).eval()

    fastdef.save(path, model, source="tests.checkpoint.networks:lifted", classes=CLASSES)

    got = fastdef.load(path, source="tests.checkpoint.networks:lifted")
    assert torch.equal(got.model(IMAGES), model(IMAGES))


def test_code_of_ones_own_runs_only_where_the_caller_names_it(path):
    network = networks.small(width=5, kernel=(3, 1)).eval()
    fastdef.save(path, network, source=OURS, source_args={"width": 5, "kernel": (3, 1)}, classes=CLASSES)
    networks.CALLS.clear()

    with pytest.raises(ValueError, match=rf"^cannot load {path}: .* pass source='{OURS}', .*--source {OURS}$"):
        fastdef.load(path)
    assert networks.CALLS == []

    got = fastdef.load(path, source=OURS)
    assert networks.CALLS == [(5, [3, 1])]
    assert torch.equal(got.model(IMAGES), network(IMAGES))


def test_what_the_file_names_is_not_imported_where_the_caller_names_something_else(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')")
    fastdef.save(path, networks.small(), source=OURS, classes=CLASSES)
    retell(path, source="theirs:small")

    assert fastdef.load(path, source=OURS).architecture["source"] == OURS
    with pytest.raises(ValueError, match="pass source='theirs:small'"):
        fastdef.load(path)


def test_a_model_that_was_loaded_from_named_code_is_saved_without_naming_it_again(path):
    fastdef.save(path, networks.small(), source=OURS, classes=CLASSES)
    got = fastdef.load(path, source=OURS)

    fastdef.save(path, got.model, architecture=got.architecture, classes=CLASSES, defense={"name": "active"})

    assert fastdef.load(path, source=OURS).defense == {"name": "active"}


@pytest.mark.parametrize(
    ("changes", "need"),
    [
        ({"source": None}, "an architecture or a source, got none"),
        ({"architecture": {}}, "an architecture or a source, got both"),
        ({"source": "resnet18"}, r"needs timm:NAME, torchvision:NAME or package\.module:function, got 'resnet18'"),
        ({"source": "tests.checkpoint.networks:absent"}, "tests.checkpoint.networks has no function 'absent'"),
        ({"source": "no_such_package.of_mine:f"}, "builds no network: No module named 'no_such_package'"),
        ({"source": "tests.checkpoint.networks:nothing"}, "needs to return a network, got a int"),
        ({"source": "tests.checkpoint.networks:broken"}, "builds no network: no such thing"),
        ({"source_args": {"width": 7}}, r"'conv1.weight' needs shape \(7, 3, 3, 3\), got \(4, 3, 3, 3\)"),
        ({"source_args": {"width": {1}}}, "what JSON can hold"),
        ({"source_args": {"depth": 1}}, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_source_that_does_not_make_the_model_is_refused_in_one_line(path, changes, need):
    with pytest.raises(ValueError, match=f"^[^\n]*{need}[^\n]*$"):
        fastdef.save(path, networks.small(), **({"source": OURS, "classes": CLASSES} | changes))

    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "need"),
    [
        ({"source": "timm:hf-hub:someone/model"}, "needs timm:NAME"),
        ({"source": "timm:../model"}, "needs timm:NAME"),
        ({"source": "timm:no_such_network"}, "has no network 'no_such_network'"),
        ({"source": "torchvision:"}, "needs torchvision:NAME"),
        ({"source": 3}, "source needs to be a str"),
        ({"source_args": {"pretrained": True}}, "leave weights alone, got 'pretrained'"),
        ({"source_args": {"checkpoint_path": "x"}}, "leave weights alone, got 'checkpoint_path'"),
        ({"source_args": {"num_classes": 10**9}}, "numbers up to 65536"),
        ({"source_args": {"a": [[1] * 65]}}, "lists of 64 at most"),
        ({"source_args": []}, "source_args needs to be a dict"),
        ({"mean": [0.5]}, "mean and std go together"),
        ({"mean": "a", "std": "b"}, "mean needs to be a list of numbers"),
        ({"conversions": [{"name": "none"}]}, "registered name"),
        ({"more": 1}, "description needs"),
    ],
)
def test_a_strangers_description_is_refused_in_one_line(path, changes, need):
    network = import_timm().create_model("resnet18", num_classes=3)
    fastdef.save(path, network, source="timm:resnet18", source_args={"num_classes": 3}, classes=CLASSES)
    retell(path, **changes)

    with pytest.raises(ValueError, match=f"^cannot load {path}: [^\n]*{need}[^\n]*$"):
        fastdef.load(path)


def test_classes_that_the_network_does_not_have_and_a_source_for_our_own_are_refused(path):
    with pytest.raises(ValueError, match="a network of 1000 classes needs as many names, got 3"):
        fastdef.save(path, import_timm().create_model("resnet18"), source="timm:resnet18", classes=CLASSES)

    described = parse_architecture("wrn-10-1", num_classes=3)
    fastdef.save(path, build(described), architecture=described, classes=CLASSES)
    with pytest.raises(ValueError, match="'wide_resnet' of fastdef's own, which takes no source"):
        fastdef.load(path, source=OURS)
