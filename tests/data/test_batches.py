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


def test_another_seed_gives_another_order_of_the_same_epoch():
    data = dataset(40)

    one, other = (torch.cat([x for x, _ in Batches(data, 8, seed=seed).epoch(0)]) for seed in (0, 1))

    assert not torch.equal(one, other)


def test_an_epoch_does_not_depend_on_those_before_it_nor_on_the_global_seed():
    data = dataset(40)
    batches = Batches(data, 8, augment=RandomCropFlip(1))
    for _ in batches.epoch(0):
        torch.rand(3)

    later = torch.cat([x for x, _ in batches.epoch(1)])
    at_once = torch.cat([x for x, _ in Batches(data, 8, augment=RandomCropFlip(1)).epoch(1)])

    assert torch.equal(later, at_once)


def test_without_shuffling_images_come_as_they_lie():
    data = dataset()

    images = torch.cat([x for x, _ in Batches(data, 4, shuffle=False).epoch(5)])

    assert images.dtype == torch.float32
    assert torch.equal(images, data.floats(0, 10))


# A generator on the CPU looks at 32 bits of its seed and drops the others.
def test_any_whole_number_is_a_seed_of_its_own():
    data = dataset(40)
    seeds = (0, 1, 2**12, 2**32, 2**43, 2**62, -1, -(2**12))

    orders = {
        bytes(torch.cat([x for x, _ in Batches(data, 8, seed=seed).epoch(epoch)]).numpy())
        for seed in seeds
        for epoch in (0, 1)
    }

    assert len(orders) == 2 * len(seeds)


def test_a_crop_over_less_than_no_border_is_refused():
    with pytest.raises(ValueError, match="RandomCropFlip needs a padding from 0 up, got -1"):
        RandomCropFlip(padding=-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_sees_the_batches_that_the_cpu_sees():
    data = dataset(40)

    pairs = zip(*(Batches(data.to(d), 8, augment=RandomCropFlip(2)).epoch(3) for d in ("cpu", "cuda")), strict=True)

    for (images, labels), (images_there, labels_there) in pairs:
        assert images_there.is_cuda
        torch.testing.assert_close(images_there.cpu(), images, rtol=0, atol=1e-7)  # a GPU multiplies by 1 / 255
        assert torch.equal(labels, labels_there.cpu())
