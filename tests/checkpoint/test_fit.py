import pytest
import torch

from fastdef.checkpoint import load_for, save
from fastdef.data import Dataset
from fastdef.nn import architecture_of, build, convert_to_afa, convert_to_multi_bn, parse_architecture

CLASSES = ("ant", "bee", "cat")


def saved(model, folder):
    described = {"architecture": architecture_of(model), "classes": CLASSES, "training": {"shape": [1, 12, 12]}}
    save(folder / "model.safetensors", model, **described)
    return folder / "model.safetensors"


def small():
    return build(parse_architecture("wrn-10-1", num_classes=3, in_channels=1))


@pytest.fixture
def path(tmp_path):
    return saved(small(), tmp_path)


def data(*, channels=1, classes=CLASSES, labels=(0, 2), size=12):
    images = torch.zeros(len(labels), channels, size, size, dtype=torch.uint8)
    return Dataset(images, torch.tensor(labels), classes, "insects", "test")


@pytest.mark.parametrize("classes", [CLASSES, ("0", "1", "2"), ("ant", "bee", "cat", "dog")])
def test_a_model_that_fits_is_loaded(path, classes):
    assert load_for(path, data(classes=classes)).classes == CLASSES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": 3}, "needs images of 1 channels, got 3"),
        ({"classes": ("ant", "bee", "cat", "dog"), "labels": (0, 3)}, "needs labels of its 3 classes, got insects's 3"),
        ({"classes": ("ant", "cat", "bee")}, "under its own numbers: 'cat' is 2, got 1"),
        ({"classes": ("ant", "Cat", "bee")}, "under its own numbers: 'Cat' is 2, got 1"),
        ({"classes": ("bee", "cat"), "labels": (0, 1)}, "under its own numbers: 'bee' is 1, got 0"),
        ({"size": 16}, r"the shape it was trained on, \[1, 12, 12\], got \[1, 16, 16\]"),
    ],
)
def test_what_would_fail_or_count_wrongly_is_refused(path, given, message):
    with pytest.raises(ValueError, match=message):
        load_for(path, data(**given))


def test_without_labels_only_the_images_have_to_fit(path):
    assert load_for(path, data(classes=("ant", "cat", "bee")), labels=False).classes == CLASSES
    with pytest.raises(ValueError, match="needs images of 1 channels, got 3"):
        load_for(path, data(channels=3), labels=False)


def test_a_model_of_branches_answers_only_where_its_parts_are_wanted(tmp_path):
    branched = saved(convert_to_multi_bn(small(), 2), tmp_path)

    with pytest.raises(ValueError, match="is of AFA's stage I, whose branches answer one by one"):
        load_for(branched, data())
    assert load_for(branched, data(), parts=True).classes == CLASSES
    assert load_for(saved(convert_to_afa(convert_to_multi_bn(small(), 2)), tmp_path), data()).classes == CLASSES
