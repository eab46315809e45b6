import pytest
import torch

from fastdef.data import Batches, Dataset, RandomCropFlip


def dataset(count=10, size=6):
    images = torch.randint(0, 256, (count, 2, size, size), dtype=torch.uint8)
    return Dataset(images, torch.arange(count) % 3, ("a", "b", "c"), "made", "train")


def test_every_image_comes_once_an_epoch():
    data = dataset()

    seen = torch.cat([images for images, _ in Batches(data, 3).epoch(0)])

    assert sorted(seen.sum((1, 2, 3)).tolist()) == sorted((data.images.float() / 255).sum((1, 2, 3)).tolist())


def test_an_epoch_is_a_function_of_seed_and_number():
    batches = Batches(dataset(), 4, augment=RandomCropFlip(2), seed=1)

    first, again, other = (torch.cat([x for x, _ in batches.epoch(epoch)]) for epoch in (3, 3, 4))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labels_stay_with_their_images():
    data = dataset()

    for images, labels in Batches(data, 4).epoch(0):
        for image, label in zip(images, labels, strict=True):
            index = (data.images.float() / 255 == image).flatten(1).all(1).nonzero().item()
            assert data.labels[index] == label


@pytest.mark.parametrize(("count", "drop", "sizes"), [(10, False, [4, 4, 2]), (10, True, [4, 4]), (8, False, [4, 4])])
def test_the_last_batch_is_kept_or_dropped(count, drop, sizes):
    batches = Batches(dataset(count), 4, drop_last=drop)

    assert [len(labels) for _, labels in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("flip", [True, False])
def test_crop_and_flip_equal_those_written_as_a_loop(flip):
    data = dataset(40)
    augment = RandomCropFlip(padding=2, flip=flip)

    out = augment(data.images, torch.Generator().manual_seed(5))

    generator = torch.Generator().manual_seed(5)
    shifts = torch.randint(0, 5, (2, 40, 1), generator=generator)
    mirrored = torch.randint(0, 2, (40, 1), generator=generator).bool()
    for index, image in enumerate(data.images):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        top, left = int(shifts[0, index]), int(shifts[1, index])
        crop = padded[:, top : top + 6, left : left + 6]
        if flip and mirrored[index]:
            crop = crop.flip(2)
        assert torch.equal(out[index], crop)
    assert len({tuple(shift) for shift in shifts[:, :, 0].T.tolist()}) > 10  # each image by its own draw


@pytest.mark.parametrize(("count", "size"), [(3, 0), (2, 4)])
def test_a_batch_size_that_leaves_no_batch_is_refused(count, size):
    with pytest.raises(ValueError, match="batch size"):
        Batches(dataset(count), size, drop_last=True)
