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


def test_a_subset_holds_each_class_in_its_share_and_begins_a_larger_one(pictures):
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 10 + [3] * 10)  # stored class by class
    data = Dataset(pictures(80, size=2), labels, tuple("abcd"), "made", "train")

    small, large = data.subset(8), data.subset(40)

    assert small.labels.bincount().tolist() == [4, 2, 1, 1]
    assert large.labels.bincount().tolist() == [20, 10, 5, 5]
    assert torch.equal(large.images[:8], small.images)
    assert data.subset(8).digest() == small.digest() != data.subset(8, seed=1).digest()
    assert len(data.subset(99)) == 80


def test_images_of_a_subset_keep_their_labels(pictures):
    images = pictures(30, size=4)
    data = Dataset(images, torch.arange(30) % 7, tuple("abcdefg"), "made", "train")

    part = data.subset(20)

    for image, label in zip(part.images, part.labels, strict=True):
        assert label == data.labels[(images == image).flatten(1).all(1)].item()


def test_a_class_that_a_part_lacks_is_named(pictures):
    data = Dataset(pictures(21, size=2), torch.tensor([0] * 20 + [1]), ("cat", "dog"), "pets", "train")

    assert data.subset(21).notes == ()
    assert data.subset(4).notes == ("4 images of pets train lack 1 classes: dog",)


def test_fit_and_validation_are_the_whole_without_overlap(dataset):
    fit, validation = dataset.fit(), dataset.validation()

    assert (len(fit), fit.split, len(validation), validation.split) == (18, "fit", 2, "validation")
    both = torch.cat([fit.images, validation.images]).flatten(1)
    assert sorted(both.tolist()) == sorted(dataset.images.flatten(1).tolist())


def test_validation_holds_each_class_in_its_share_however_they_are_stored(pictures):
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 50)
    data = Dataset(pictures(200, size=2), labels, tuple("abc"), "made", "train")

    assert data.validation().labels.bincount().tolist() == [10, 5, 5]
    assert data.fit().labels.tolist() == sorted(data.fit().labels.tolist())  # as it is stored
    assert data.validation().digest() == data.validation().digest()


@pytest.mark.parametrize("count", [0, -1])
def test_a_subset_of_nothing_is_refused(dataset, count):
    with pytest.raises(ValueError, match=f"made needs a count of images from 1 up, got {count}"):
        dataset.subset(count)


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
