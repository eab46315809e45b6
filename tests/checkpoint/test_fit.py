import pytest
import torch

from fastdef.checkpoint import load_for, save
from fastdef.data import Dataset
from fastdef.nn import architecture_of, build, parse_architecture

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=3, in_channels=1))
    save(tmp_path / "model.safetensors", model, architecture=architecture_of(model), classes=CLASSES)
    return tmp_path / "model.safetensors"


def data(*, channels=1, classes=CLASSES, labels=(0, 2)):
    images = torch.zeros(len(labels), channels, 12, 12, dtype=torch.uint8)
    return Dataset(images, torch.tensor(labels), classes, "insects", "test")


@pytest.mark.parametrize("classes", [CLASSES, ("0", "1", "2"), ("ant", "bee", "cat", "dog")])
def test_a_model_that_fits_is_loaded(path, classes):
    assert load_for(path, data(classes=classes)).classes == CLASSES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": 3}, "needs images of 1 channels, got 3"),
        ({"classes": ("ant", "bee", "cat", "dog"), "labels": (0, 3)}, "needs labels of its 3 classes, got insects's 3"),
        ({"classes": ("ant", "cat", "bee")}, "in its own order: number 1 is 'bee', got 'cat'"),
    ],
)
def test_what_would_fail_or_count_wrongly_is_refused(path, given, message):
    with pytest.raises(ValueError, match=message):
        load_for(path, data(**given))


def test_without_labels_only_the_images_have_to_fit(path):
    assert load_for(path, data(classes=("ant", "cat", "bee")), labels=False).classes == CLASSES
    with pytest.raises(ValueError, match="needs images of 1 channels, got 3"):
        load_for(path, data(channels=3), labels=False)
