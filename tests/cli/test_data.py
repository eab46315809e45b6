import numpy as np
import pytest
import torch
from PIL import Image

from fastdef.cli._data import Reading


@pytest.fixture
def root(tmp_path):
    """Ten classes, stored one after another: twenty images of each but the last, which has one."""
    for label in range(10):
        folder = tmp_path / "train" / f"class {label}"
        folder.mkdir(parents=True)
        for number in range(20 if label < 9 else 1):
            pixels = np.full((4, 4), 20 * label + number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return tmp_path


def values(dataset):
    return set(dataset.images[:, 0, 0, 0].tolist())


def test_a_limit_holds_every_class_and_names_the_one_that_it_lacks(root, capsys):
    dataset = Reading(root).load("digits", "train", limit=20)

    assert dataset.labels.bincount().tolist()[:9] == pytest.approx([20 / 9] * 9, abs=1)
    missing = [] if 9 in dataset.labels else ["note: 20 images of digits train lack 1 classes: class 9"]
    assert capsys.readouterr().err.splitlines() == missing


def test_what_is_held_out_is_the_same_whatever_the_limit(root):
    reading = Reading(root)

    whole, limited = reading.load_training("digits"), reading.load_training("digits", limit=50)

    assert (len(limited[0]), len(limited[1])) == (45, 5)
    assert values(limited[0]) <= values(whole[0])
    assert values(limited[1]) <= values(whole[1])
    assert torch.equal(whole[1].images, reading.load("digits", "validation").images)


def test_what_was_done_to_the_images_is_told_once_for_both_parts(root, capsys):
    exif = Image.Exif()
    exif[0x112] = 3
    file = root / "train" / "class 0" / "00.png"
    with Image.open(file) as image:
        image.load()
    image.save(file, exif=exif)

    Reading(root).load_training("digits")

    notes = capsys.readouterr().err.splitlines()
    assert notes.count("note: 1 image was turned upright, as EXIF says") == 1


def test_a_background_and_an_order_of_classes_are_passed_on(tmp_path):
    for name in ("10", "9"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "test" / name / "1.png")

    dataset = Reading(tmp_path, background="white", class_order="number").load("digits", "test")

    assert dataset.classes == ("9", "10")
    assert values(dataset) == {255}
    with pytest.raises(ValueError, match="needs every pixel opaque"):
        Reading(tmp_path).load("digits", "test")
