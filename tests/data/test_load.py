import gzip
import io
import warnings

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fastdef.data import load_dataset
from fastdef.data._idx import write_idx

# What the hub's schemas say: folder there, image column, label columns, size, Pillow's mode, name of the test split.
SCHEMAS = {
    "cifar10": ("plain_text", "img", ("label",), 32, "RGB", "test"),
    "cifar100": ("cifar100", "img", ("fine_label", "coarse_label"), 32, "RGB", "test"),
    "svhn": ("cropped_digits", "image", ("label",), 32, "RGB", "test"),
    "tiny-imagenet": ("data", "image", ("label",), 64, "RGB", "valid"),
    "fashion-mnist": ("fashion_mnist", "image", ("label",), 28, "L", "test"),
}


def png(size, mode, value):
    file = io.BytesIO()
    channels = () if mode == "L" else (3,)
    Image.fromarray(np.full((size, size, *channels), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, name, values, *, labels=None):
    _, image, columns, size, mode, _ = SCHEMAS[name]
    table = {image: [{"bytes": png(size, mode, value), "path": f"{value}.png"} for value in values]}
    table |= {column: labels or [value % 10 for value in values] for column in columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(table), path, row_group_size=2)


@pytest.mark.parametrize("name", SCHEMAS)
def test_parquet_in_the_hub_s_schema_is_read_in_order(tmp_path, name):
    folder, _, _, size, mode, test = SCHEMAS[name]
    write_parquet(tmp_path / folder / f"{test}-00000-of-00002.parquet", name, [1, 2, 3])
    write_parquet(tmp_path / folder / f"{test}-00001-of-00002.parquet", name, [14, 5])

    dataset = load_dataset(name, "test", root=tmp_path)

    assert dataset.images.shape == (5, 1 if mode == "L" else 3, size, size)
    assert dataset.images[:, 0, 0, 0].tolist() == [1, 2, 3, 14, 5]
    assert dataset.labels.tolist() == [1, 2, 3, 4, 5]


def test_fit_and_validation_are_fixed_parts_of_train(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", "cifar10", list(range(25)))

    fit, validation = (load_dataset("cifar10", split, root=tmp_path) for split in ("fit", "validation"))

    values = fit.images[:, 0, 0, 0].tolist(), validation.images[:, 0, 0, 0].tolist()
    assert (len(values[0]), len(values[1])) == (23, 2)
    assert sorted(values[0] + values[1]) == list(range(25))


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read_as_they_were_written(tmp_path, zipped):
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    write_idx(tmp_path, "test", images, torch.arange(5))
    if not zipped:
        for file in list(tmp_path.iterdir()):
            file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
            file.unlink()

    dataset = load_dataset("fashion-mnist", "test", root=tmp_path)

    assert torch.equal(dataset.images, images)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.classes[9] == "ankle boot"


def test_a_folder_of_images_by_class_is_a_data_set(tmp_path):
    for split, label, value in (("train", "cat", 1), ("train", "dog", 2), ("test", "cat", 3), ("test", "dog", 4)):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / "0.png").write_bytes(png(8, "RGB", value))

    dataset = load_dataset("pets", "test", root=tmp_path)

    assert dataset.classes == ("cat", "dog")
    assert dataset.images[:, 0, 0, 0].tolist() == [3, 4]
    assert dataset.labels.tolist() == [0, 1]


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, "not a whole parquet file"),
        (lambda file: file.write_bytes(b"PK not parquet"), "not a whole parquet file"),
        (lambda file: file.unlink(), "got none of it"),
        (
            lambda file: parquet.write_table(pyarrow.table({"label": [1]}), file),
            "needs the columns img and label, got label",
        ),
        (lambda file: write_parquet(file, "cifar10", [1], labels=[10]), "labels from 0 to 9, got 10 to 10"),
        (
            lambda file: parquet.write_table(
                pyarrow.table({"img": [{"bytes": b"GIF", "path": "x"}], "label": [1]}), file
            ),
            "row 0 is not a whole PNG, JPEG",
        ),
        (
            lambda file: parquet.write_table(
                pyarrow.table({"img": [{"bytes": png(n, "RGB", 1), "path": "x"} for n in (32, 31)], "label": [1, 1]}),
                file,
            ),
            r"row 1 needs the size of the images before it, got \(31, 31\) after \(32, 32\)",
        ),
    ],
)
def test_damaged_parquet_is_refused_in_one_line(tmp_path, spoil, message):
    file = tmp_path / "test-00000-of-00001.parquet"
    write_parquet(file, "cifar10", [1, 2])
    spoil(file)

    with pytest.raises(ValueError, match=message) as refusal:
        load_dataset("cifar10", "test", root=tmp_path)
    assert "\n" not in str(refusal.value)


def packed(digits):
    """Without the time, which would be part of a test's name: processes that collect a second apart would not agree."""
    return gzip.compress(bytes.fromhex(digits), mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b broken", "not a whole gzip file"),
        (packed("0000"), "needs an IDX header, got 2 bytes"),
        (packed("00" * 16), "magic number 0x803, got 0x0"),
        (packed("00000803 0000000a 0000001c 0000001c"), "needs 7840 values"),
    ],
)
def test_damaged_idx_is_refused_in_one_line(tmp_path, content, message):
    write_idx(tmp_path, "test", torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)

    with pytest.raises(ValueError, match=message):
        load_dataset("fashion-mnist", "test", root=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "test", "."), "a name among cifar10, cifar100, svhn, tiny-imagenet, fashion-mnist"),
        (("cifar10", "dev", "."), "a split among train, test, fit, validation, all, got 'dev'"),
        (("cifar10", "test", "nowhere"), "a folder that holds cifar10, got nowhere"),
        (("cifar10", "test", "a" * 300), "a{200} needs to be there and readable: File name too long"),
        (("cifar10", "test", None), "root, a folder that holds cifar10, or download=True, got neither"),
    ],
)
def test_unknown_requests_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    name, split, root = arguments

    with pytest.raises(ValueError, match=message):
        load_dataset(name, split, root=root)


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="cannot download uoft-cs/cifar10"):
            load_dataset("cifar10", "test", download=True)


def test_a_download_fetches_the_files_of_one_split(tmp_path, monkeypatch):
    asked = {}

    def snapshot(repository, **options):
        asked.update(options, repository=repository)
        write_parquet(tmp_path / "data" / "valid-00000-of-00001.parquet", "tiny-imagenet", [3])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)

    dataset = load_dataset("tiny-imagenet", "test", download=True)

    assert dataset.labels.tolist() == [3]
    assert asked == {
        "repository": "zh-plus/tiny-imagenet",
        "repo_type": "dataset",
        "allow_patterns": ["data/valid-*.parquet"],
    }


def test_classes_stored_one_after_another_are_all_held_out_in_their_shares(tmp_path):
    labels = [0] * 10 + [1] * 20 + [2] * 10
    write_parquet(tmp_path / "train-00000-of-00001.parquet", "cifar10", list(range(40)), labels=labels)

    train, validation = (load_dataset("cifar10", split, root=tmp_path) for split in ("train", "validation"))

    assert train.images[:, 0, 0, 0].tolist() == list(range(40))
    assert train.labels.tolist() == labels
    assert train.subset(20).labels.bincount().tolist() == [5, 10, 5]
    assert validation.labels.bincount().tolist() == [1, 2, 1]


def test_what_is_missing_is_said_of_the_data_set_that_was_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"needs fashion-mnist's test split \(test-\*\.parquet or IDX files or test/"):
        load_dataset("fashion-mnist", "test", root=tmp_path)
    with pytest.raises(ValueError, match=r"needs cifar10's test split \(test-\*\.parquet or test/<class>"):
        load_dataset("cifar10", "test", root=tmp_path)


@pytest.mark.parametrize(("name", "split", "got"), [("mnist", "test", "'mnist'"), ("svhn", "all", "the split all")])
def test_what_the_hub_has_not_is_not_asked_of_it(name, split, got):
    with pytest.raises(ValueError, match=f"a download needs a name among cifar10, .* and no split all, got {got}"):
        load_dataset(name, split, download=True)
