import gzip
import struct

import pytest
import torch

from fastdef.data import load_dataset, write_idx

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture
def folder(tmp_path, pictures):
    write_idx(tmp_path, "test", pictures(3, 1, 28), torch.tensor([9, 0, 4]))
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_was_written_is_what_is_read(tmp_path, pictures, split):
    images, labels = pictures(3, 1, 28), torch.tensor([9, 0, 4])

    write_idx(tmp_path / "new", split, images, labels)
    dataset = load_dataset("fashion-mnist", split, root=tmp_path / "new")

    assert torch.equal(dataset.images, images)
    assert torch.equal(dataset.labels, labels)
    assert dataset.classes[9] == "ankle boot"


def test_a_written_file_begins_as_the_format_says(folder):
    content = gzip.decompress((folder / f"{IMAGES}.gz").read_bytes())

    assert content[:16] == bytes.fromhex("00000803 00000003 0000001c 0000001c")
    assert len(content) == 16 + 3 * 28 * 28


def test_the_same_content_gives_the_same_bytes(folder, tmp_path, pictures):
    write_idx(tmp_path / "again", "test", pictures(3, 1, 28), torch.tensor([9, 0, 4]))

    for name in (f"{IMAGES}.gz", f"{LABELS}.gz"):
        first = (folder / name).read_bytes()
        assert first == (tmp_path / "again" / name).read_bytes()
        assert first[4:8] == bytes(4)  # gzip's time stamp


def _ints(*values):
    return struct.pack(f">{len(values)}I", *values)


@pytest.mark.parametrize(
    ("name", "content", "need"),
    [
        (IMAGES, _ints(0x801, 3, 28, 28), "needs the IDX magic number 0x803, got 0x801"),
        (IMAGES, _ints(0x803, 3), "needs an IDX header, got 8 bytes"),
        (IMAGES, _ints(0x803, 3, 28, 28) + bytes(9), "needs 2352 values after its header, got 9"),
        (IMAGES, _ints(0x803, 1, 28, 28) + bytes(785), "needs 784 values after its header, got 785"),
        (IMAGES, _ints(0x803, *[2**32 - 1] * 3), "values after its header, got 0"),
        (IMAGES, _ints(0x803, 0, 28, 28), "needs at least one image, got none"),
        (IMAGES, _ints(0x803, 3, 2, 2) + bytes(12), "needs images of 28 x 28 pixels, got 2 x 2"),
        (LABELS, _ints(0x801, 2) + bytes(2), "needs 3 labels, one for each image, got 2"),
        (LABELS, _ints(0x801, 0), "needs 3 labels, one for each image, got 0"),
        (LABELS, _ints(0x801, 3) + bytes([0, 10, 0]), "needs labels from 0 to 9, got 10"),
    ],
)
def test_content_that_is_not_the_data_set_is_refused_by_file(folder, name, content, need):
    (folder / f"{name}.gz").unlink()
    (folder / name).write_bytes(content)

    with pytest.raises(ValueError, match=f"{name} .*{need}"):
        load_dataset("fashion-mnist", "test", root=folder)


# Cut off, no gzip at all, a byte changed within, and a kind of block that does not exist.
@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-100],
        lambda c: b"nothing",
        lambda c: c[:200] + bytes([c[200] ^ 255]) + c[201:],
        lambda c: c[:10] + bytes([255]) + c[11:],
    ],
)
def test_a_damaged_gzip_file_is_refused(folder, damage):
    file = folder / f"{IMAGES}.gz"
    file.write_bytes(damage(file.read_bytes()))

    with pytest.raises(ValueError, match=f"{IMAGES}.gz is not a whole gzip file: .+"):
        load_dataset("fashion-mnist", "test", root=folder)


def test_a_gzip_bomb_is_refused_before_it_is_unpacked_whole(folder, monkeypatch):
    monkeypatch.setattr("fastdef.data._idx.MOST_BYTES", 5000)
    file = folder / f"{IMAGES}.gz"
    file.write_bytes(gzip.compress(_ints(0x803, 3, 28, 28) + bytes(1_000_000)))

    with pytest.raises(ValueError, match=f"{IMAGES}.gz needs 2352 values after its header, got 4984"):
        load_dataset("fashion-mnist", "test", root=folder)


def test_images_without_labels_are_refused(folder):
    (folder / f"{LABELS}.gz").unlink()

    with pytest.raises(ValueError, match=f"needs both {IMAGES} and {LABELS}, got only .*{IMAGES}"):
        load_dataset("fashion-mnist", "test", root=folder)


@pytest.mark.parametrize(
    ("split", "images", "labels", "need"),
    [
        ("fit", torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1), "the split train or test, got 'fit'"),
        ("test", torch.zeros(1, 1, 2, 2), torch.zeros(1), "uint8 images, got .* torch.float32"),
        ("test", torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1), r"\(N, 1, H, W\) uint8 images, got"),
        ("test", torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), "1 labels from 0 to 255, got"),
        ("test", torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([256]), "1 labels from 0 to 255, got"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path, split, images, labels, need):
    with pytest.raises(ValueError, match=need):
        write_idx(tmp_path / "new", split, images, labels)

    assert not (tmp_path / "new").exists()
