import json

import pytest
import torch
from torch import nn

from fastdef.nn import _conversions, architecture_of, build, check_architecture, parse_architecture


@pytest.fixture
def widen(monkeypatch):
    """A conversion called ``widen`` that puts another classifier on the model."""

    def function(model, *, classes):
        model.fc = nn.Linear(model.fc.in_features, classes)
        return model

    monkeypatch.setitem(_conversions._CONVERSIONS, "widen", function)


def test_a_short_name_becomes_a_dictionary_that_json_holds():
    architecture = parse_architecture("wrn-16-4", num_classes=7, in_channels=1, mean=(0.5,), std=(0.25,))

    assert json.loads(json.dumps(architecture)) == {
        "name": "wide_resnet",
        "depth": 16,
        "width": 4,
        "num_classes": 7,
        "in_channels": 1,
        "mean": [0.5],
        "std": [0.25],
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet-34", {"name": "resnet", "depth": 34}),
        ("resnet-50-8", {"name": "resnet", "depth": 50, "width": 8}),
        ("preactresnet-18", {"name": "preact_resnet", "depth": 18}),
    ],
)
def test_the_residual_networks_have_short_names(name, expected):
    assert expected.items() <= parse_architecture(name).items()


@pytest.mark.parametrize(
    "name", ["vgg-16", "wrn-16", "wrn-16-4-2", "WRN-16-4", "resnet", "", "wrn-16-4\n", "wrn-10-1-relu", "wrn-٢٨-1"]
)
def test_a_name_that_is_not_known_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"resnet-DEPTH-WIDTH, preactresnet-18, dm-wrn-DEPTH-WIDTH, .* SiLU; got"):
        parse_architecture(name)


@pytest.mark.parametrize("name", ["wrn-17-4", "resnet-101", "preactresnet-34"])
def test_a_depth_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(ValueError, match="needs a depth of"):
        parse_architecture(name)


def test_a_model_remembers_what_it_was_built_from():
    architecture = parse_architecture("wrn-10-1", mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 1.0])
    model = build(architecture)

    told = architecture_of(model)
    told["mean"].append(4)

    assert architecture_of(model) == architecture


def test_what_was_left_out_is_told_too():
    told = architecture_of(build({"name": "wide_resnet", "depth": 10, "width": 1}))

    assert (told["num_classes"], told["in_channels"]) == (10, 3)


def test_a_model_from_elsewhere_has_no_architecture_to_tell():
    with pytest.raises(ValueError, match="made by build, got a Linear"):
        architecture_of(nn.Linear(1, 1))


def test_checking_an_architecture_allocates_nothing_and_draws_no_random_number():
    before = torch.get_rng_state()

    model = check_architecture(parse_architecture("wrn-22-1000"))

    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)


WRN = {"name": "wide_resnet", "depth": 10, "width": 1}


@pytest.mark.parametrize(
    ("architecture", "need"),
    [
        ([], "a dictionary, got a list"),
        ({}, "name out of wide_resnet, preact_resnet, resnet, dm_wide_resnet, dm_preact_resnet, got None"),
        ({"name": ["resnet"]}, "got \\['resnet'\\]"),
        ({"name": "vgg"}, "got 'vgg'"),
        ({"name": "wide_resnet", "depth": 10}, "needs width"),
        (WRN | {"colour": 1}, "has no 'colour'"),
        (WRN | {"num_classes": "10"}, "integer num_classes"),
        (WRN | {"in_channels": 10**9}, "integer in_channels"),
        (WRN | {"depth": "10"}, "depth of 6n"),
        (WRN | {"width": 10**12}, "integer width"),
        (WRN | {"mean": [0.5] * 3}, "std as a list of 3 numbers, got None"),
        (WRN | {"mean": [0.5], "std": [0.5]}, "mean as a list of 3 numbers"),
        (WRN | {"mean": "abc", "std": "abc"}, "mean as a list"),
        (WRN | {"mean": [True] * 3, "std": [1] * 3}, "mean as a list"),
        (WRN | {"conversions": "afa"}, "conversions need to be a list"),
        (WRN | {"conversions": [{"name": "none such"}]}, "registered name"),
        (WRN | {"conversions": ["widen"]}, "registered name"),
        (WRN | {"conversions": [{"name": "widen", "colour": 1}]}, "'widen' refuses its arguments .*colour"),
        ({"name": "preact_resnet", "depth": 34}, "depth of 18, got 34"),
    ],
)
@pytest.mark.usefixtures("widen")
def test_an_architecture_that_makes_no_model_is_refused(architecture, need):
    with pytest.raises(ValueError, match=need):
        build(architecture)


@pytest.mark.usefixtures("widen")
def test_conversions_are_applied_in_order():
    architecture = WRN | {"conversions": [{"name": "widen", "classes": 3}, {"name": "widen", "classes": 5}]}

    model = build(architecture)

    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    assert architecture_of(model)["conversions"] == architecture["conversions"]
