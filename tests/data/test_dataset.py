import hashlib
from dataclasses import replace

import pytest
import torch

from fastdef.data import Dataset


@pytest.fixture
def dataset(pictures):
    return Dataset(pictures(20, size=4), torch.arange(20) % 2, ("a", "b"), "made", "train")


def test_floats_are_the_images_by_255(dataset):
    floats = dataset.floats(3, 5)

    assert floats.dtype == torch.float32
    torch.testing.assert_close(floats * 255, dataset.images[3:5].float())


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (20, 20), (99, 20)])
def test_take_gives_the_first_images_or_all(dataset, count, wanted):
    part = dataset.take(count)

    assert len(part) == wanted
    assert torch.equal(part.images, dataset.images[:count])
    assert part.split == "train"


@pytest.mark.parametrize("count", [0, -1])
def test_take_of_nothing_is_refused(dataset, count):
    with pytest.raises(ValueError, match=f"made needs a count of images from 1 up, got {count}"):
        dataset.take(count)


def test_fit_and_validation_are_the_whole_without_overlap(dataset):
    fit, validation = dataset.fit(), dataset.validation()

    assert (len(fit), fit.split, len(validation), validation.split) == (18, "fit", 2, "validation")
    assert torch.equal(torch.cat([fit.images, validation.images]), dataset.images)


def test_a_tenth_of_fewer_than_ten_is_refused(dataset):
    with pytest.raises(ValueError, match="made needs ten images for a tenth to validate with, got 9"):
        dataset.take(9).validation()


def test_the_digest_is_of_images_and_labels_in_their_order(dataset):
    expected = hashlib.sha256(dataset.images.numpy().tobytes() + dataset.labels.numpy().tobytes()).hexdigest()
    strided = replace(dataset, images=dataset.images.contiguous(memory_format=torch.channels_last))
    others = [
        replace(dataset, images=dataset.images.flip(0)),
        replace(dataset, labels=1 - dataset.labels),
        dataset.take(19),
    ]

    assert dataset.digest() == strided.digest() == expected
    assert len({expected, *(other.digest() for other in others)}) == 4


def test_moving_keeps_the_facts(dataset):
    moved = dataset.to(torch.device("cpu"))

    assert torch.equal(moved.images, dataset.images)
    assert (moved.classes, moved.name, moved.split, moved.flip) == (("a", "b"), "made", "train", True)


@pytest.mark.parametrize(
    ("images", "labels", "need"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), r"\(N, C, H, W\) uint8 images, got .* torch.float32"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"\(N, C, H, W\) uint8 images, got \(2, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"\(2,\) int64 labels, got \(3,\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2), r"\(2,\) int64 labels, got \(2,\) torch.float32"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2]), "labels from 0 to 1, got 0 to 2"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([-1, 0]), "labels from 0 to 1, got -1 to 0"),
    ],
)
def test_what_is_no_data_set_is_refused(images, labels, need):
    with pytest.raises(ValueError, match=need):
        Dataset(images, labels, ("a", "b"), "made", "train")
