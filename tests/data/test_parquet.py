import json

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fastdef.data import load_dataset
from tests.data.mutants import exif, saved

# name, folder on the hub, column of images, columns of labels, channels, size, classes, its test split's files
HUB = [
    ("cifar10", "plain_text", "img", ("label",), 3, 32, 10, "test"),
    ("cifar100", "cifar100", "img", ("fine_label", "coarse_label"), 3, 32, 100, "test"),
    ("svhn", "cropped_digits", "image", ("label",), 3, 32, 10, "test"),
    ("tiny-imagenet", "data", "image", ("label",), 3, 64, 200, "valid"),
    ("fashion-mnist", "fashion_mnist", "image", ("label",), 1, 28, 10, "test"),
]


@pytest.mark.parametrize(("name", "folder", "column", "labels", "channels", "size", "classes", "test"), HUB)
def test_each_data_set_reads_from_the_hubs_schema(
    tmp_path, pictures, save_parquet, name, folder, column, labels, channels, size, classes, test
):
    images = pictures(4, channels, size)
    wanted = [classes - 1, 3, 0, 1]
    columns = {label: wanted if label != "coarse_label" else [0] * 4 for label in labels}
    save_parquet(tmp_path / folder / f"{test}-00000-of-00001.parquet", images, columns, column=column)

    dataset = load_dataset(name, "test", root=tmp_path)

    assert torch.equal(dataset.images, images)
    assert dataset.labels.tolist() == wanted
    assert (dataset.name, dataset.split, len(dataset.classes)) == (name, "test", classes)


def test_shards_follow_each_other_in_the_order_of_their_numbers(tmp_path, pictures, save_parquet):
    images = pictures(300)  # more than a decoding task holds
    labels = [(row * 7) % 10 for row in range(300)]
    for number in (2, 0, 1):
        part = slice(number * 100, (number + 1) * 100)
        file = tmp_path / f"train-{number:05}-of-00003.parquet"
        save_parquet(file, images[part], {"label": labels[part]}, column="img")

    dataset = load_dataset("cifar10", "train", root=tmp_path)

    assert torch.equal(dataset.images, images)
    assert dataset.labels.tolist() == labels


# The hub's older files have a number of their own behind.
@pytest.mark.parametrize("suffix", ["", "-1359597a978bc4fa"])
def test_a_missing_shard_is_refused(tmp_path, pictures, save_parquet, suffix):
    save_parquet(tmp_path / f"train-00000-of-00002{suffix}.parquet", pictures(2), {"label": [0, 1]}, column="img")

    with pytest.raises(ValueError, match=r"needs all 2 files of train-\*\.parquet, got 1"):
        load_dataset("cifar10", "train", root=tmp_path)


def test_svhn_is_read_from_its_cropped_digits_and_not_from_its_full_numbers(tmp_path, pictures, save_parquet):
    digits = pictures(2)
    save_parquet(tmp_path / "cropped_digits" / "test-00000-of-00001.parquet", digits, {"label": [5, 3]})
    save_parquet(tmp_path / "full_numbers" / "test-00000-of-00001.parquet", pictures(2, seed=1), {"digits": [5, 3]})

    assert torch.equal(load_dataset("svhn", "test", root=tmp_path).images, digits)


def test_two_folders_of_the_same_split_are_refused(tmp_path, pictures, save_parquet):
    for folder in ("one", "other"):
        save_parquet(tmp_path / folder / "test-00000-of-00001.parquet", pictures(1), {"label": [0]}, column="img")

    with pytest.raises(ValueError, match=r"needs one folder with test-\*\.parquet, got 2: one, other"):
        load_dataset("cifar10", "test", root=tmp_path)


def test_a_stray_gray_image_becomes_rgb(tmp_path, pictures, save_parquet):
    colour, gray = pictures(1, 3, 64)[0], pictures(1, 1, 64)[0]
    save_parquet(tmp_path / "valid-00000-of-00001.parquet", [colour, gray], {"label": [1, 0]})

    images = load_dataset("tiny-imagenet", "test", root=tmp_path).images

    assert torch.equal(images, torch.stack([colour, gray.expand(3, -1, -1)]))


def test_tiny_imagenets_classes_are_those_its_files_name(tmp_path, pictures, save_parquet):
    names = [f"n{number:08}" for number in range(200)]
    save_parquet(tmp_path / "valid-00000-of-00001.parquet", pictures(1, 3, 64), {"label": [0]}, names=names)

    assert load_dataset("tiny-imagenet", "test", root=tmp_path).classes == tuple(names)


def test_the_files_do_not_rename_classes_that_have_their_names(tmp_path, pictures, save_parquet):
    names = [str(number) for number in range(10)]
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(1), {"label": [0]}, column="img", names=names)

    assert load_dataset("cifar10", "test", root=tmp_path).classes[:2] == ("airplane", "automobile")


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_the_same_names_in_another_order_are_renumbered_shard_by_shard(tmp_path, pictures, save_parquet):
    images = pictures(20)
    for number, names in enumerate((CIFAR10[::-1], sorted(CIFAR10, key=len))):
        file = tmp_path / f"test-{number:05}-of-00002.parquet"
        labels = {"label": [names.index(name) for name in CIFAR10]}
        save_parquet(file, images[10 * number :][:10], labels, column="img", names=list(names))

    dataset = load_dataset("cifar10", "test", root=tmp_path)

    assert dataset.classes == CIFAR10
    assert dataset.labels.tolist() == [*range(10), *range(10)]


def test_names_are_the_same_however_they_are_written(tmp_path, pictures, save_parquet):
    names = [name.upper() + " " for name in CIFAR10[::-1]]
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(1), {"label": [0]}, column="img", names=names)

    dataset = load_dataset("cifar10", "test", root=tmp_path)

    assert (dataset.classes, dataset.labels.tolist()) == (CIFAR10, [9])


def test_other_names_are_taken_as_the_files_number_them(tmp_path, pictures, save_parquet):
    names = [f"class {number}" for number in range(10)]
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(1), {"label": [3]}, column="img", names=names)

    dataset = load_dataset("cifar10", "test", root=tmp_path)

    assert (dataset.classes, dataset.labels.tolist()) == (tuple(names), [3])


@pytest.mark.parametrize("names", [CIFAR10[:9], [*CIFAR10, "yacht"], [*CIFAR10[:9], "ship"]])
def test_another_count_of_names_is_refused(tmp_path, pictures, save_parquet, names):
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(1), {"label": [0]}, column="img", names=list(names))

    assert f"needs names for 10 classes, got {len(set(names))} of {len(names)}: airplane" in _refusal(tmp_path)


def test_shards_of_other_classes_are_refused(tmp_path, pictures, save_parquet):
    for number, names in enumerate((CIFAR10, (*CIFAR10[:9], "yacht"))):
        file = tmp_path / f"test-{number:05}-of-00002.parquet"
        save_parquet(file, pictures(1), {"label": [0]}, column="img", names=list(names))

    with pytest.raises(ValueError, match=r"00001-of-00002.parquet needs the classes of .*, got yacht"):
        load_dataset("cifar10", "test", root=tmp_path)


# As the features say which column holds the images, or as it is called nearly everywhere.
@pytest.mark.parametrize(
    ("column", "features"),
    [("image", None), ("picture", {"picture": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CIFAR10}})],
)
def test_a_column_of_images_by_another_name_is_found(tmp_path, pictures, save_parquet, column, features):
    file = save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(2), {"label": [1, 0]}, column=column)
    if features is not None:
        told = {"huggingface": json.dumps({"info": {"features": features}})}
        parquet.write_table(parquet.read_table(file).replace_schema_metadata(told), file)

    dataset = load_dataset("cifar10", "test", root=tmp_path)

    assert torch.equal(dataset.images, pictures(2))


def test_images_in_parquet_are_what_a_viewer_shows(tmp_path, save_parquet):
    upright = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
    encoded = saved(Image.fromarray(upright[::-1, ::-1].copy()), "PNG", exif=b"Exif\0\0" + exif(3))
    save_parquet(tmp_path / "test-00000-of-00001.parquet", [encoded], {"label": [0]}, column="img")

    dataset = load_dataset("cifar10", "test", root=tmp_path)

    assert torch.equal(dataset.images[0, 0], torch.from_numpy(upright))
    assert dataset.notes == ("1 image was turned upright, as EXIF says",)


def test_a_digit_is_not_mirrored_and_a_frog_is(tmp_path, pictures, save_parquet):
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(1), {"label": [6]})
    save_parquet(tmp_path / "train-00000-of-00001.parquet", pictures(1), {"label": [6]}, column="img")

    assert not load_dataset("svhn", "test", root=tmp_path).flip
    assert load_dataset("cifar10", "train", root=tmp_path).flip


def _refusal(tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011, its callers compare the whole of the message
        load_dataset("cifar10", "test", root=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "test-00000-of-00001.parquet" in message
    return message


# Its footer cut off, its middle gone, nothing left, and never parquet at all.
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: content[:50] + content[-400:],
        lambda content: b"",
        lambda content: b"PK" * 99,
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, pictures, save_parquet, damage):
    file = save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(20), {"label": [0] * 20}, column="img")
    file.write_bytes(damage(file.read_bytes()))

    assert "is not a whole parquet file" in _refusal(tmp_path)


def test_a_column_that_is_missing_is_refused(tmp_path, pictures, save_parquet):
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(1), {"fine_label": [0]}, column="img")

    assert "needs the columns img and label, got img, fine_label" in _refusal(tmp_path)


@pytest.mark.parametrize(
    ("labels", "need"),
    [
        ([0, 10], "needs labels from 0 to 9, got 0 to 10"),
        ([-1, 0], "needs labels from 0 to 9, got -1 to 0"),
        ([0, None], "needs whole numbers as labels, got int64 with 1 missing"),
        (["cat", "dog"], "needs whole numbers as labels, got string with 0 missing"),
    ],
)
def test_a_label_that_is_not_of_a_class_is_refused(tmp_path, pictures, save_parquet, labels, need):
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(2), {"label": labels}, column="img")

    assert need in _refusal(tmp_path)


def test_an_image_of_another_size_is_refused_by_its_row(tmp_path, pictures, save_parquet):
    images = [*pictures(8), pictures(1, size=31)[0]]
    save_parquet(tmp_path / "test-00000-of-00001.parquet", images, {"label": [0] * 9}, column="img")

    assert "row 8 needs the size of the images before it, got (31, 31) after (32, 32)" in _refusal(tmp_path)


def test_images_of_another_data_set_are_refused(tmp_path, pictures, save_parquet):
    save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(2, size=28), {"label": [0, 1]}, column="img")

    assert "row 0 needs 32 x 32 pixels, got 28 x 28" in _refusal(tmp_path)


def test_a_broken_image_is_refused_by_its_row(tmp_path, pictures, save_parquet):
    images = [*pictures(2), b"\x89PNG\r\n\x1a\n and no more"]
    save_parquet(tmp_path / "test-00000-of-00001.parquet", images, {"label": [0] * 3}, column="img")

    assert "row 2 is not a whole PNG, JPEG" in _refusal(tmp_path)


def test_a_column_without_encoded_images_is_refused(tmp_path):
    parquet.write_table(pyarrow.table({"img": ["a.png"], "label": [0]}), tmp_path / "test-00000-of-00001.parquet")

    assert "needs encoded images in img, got string with 0 missing" in _refusal(tmp_path)


def test_an_image_that_is_only_a_path_is_refused(tmp_path):
    images = [{"bytes": b"", "path": "a.png"}, {"bytes": None, "path": "a.png"}]
    parquet.write_table(pyarrow.table({"img": images, "label": [0, 1]}), tmp_path / "test-00000-of-00001.parquet")

    assert "needs encoded images in img, got struct<bytes: binary, path: string> with 1 missing" in _refusal(tmp_path)


def test_a_byte_changed_anywhere_gives_the_images_or_a_refusal_and_nothing_else(tmp_path, pictures, save_parquet):
    file = save_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(1) // 255, {"label": [3]}, column="img")
    content = file.read_bytes()

    for place in range(0, len(content), 11):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            load_dataset("cifar10", "test", root=tmp_path)
        except ValueError:
            _refusal(tmp_path)


def test_a_file_without_rows_is_refused(tmp_path, save_parquet):
    save_parquet(
        tmp_path / "test-00000-of-00001.parquet", [], {"label": pyarrow.array([], pyarrow.int64())}, column="img"
    )

    assert "needs at least one image, got no rows" in _refusal(tmp_path)
