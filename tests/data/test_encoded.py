import pyarrow as pa
import pytest
from pyarrow import parquet

from fastdef.data import EncodedImages


@pytest.fixture
def stored(tmp_path):
    """Ten images, b"0" to b"9", in two parquet files of small row groups; one is missing."""
    for name, values in (("a", range(6)), ("b", range(6, 10))):
        column = pa.array([{"bytes": None if value == 7 else b"%d" % value, "path": "x"} for value in values])
        parquet.write_table(pa.table({"image": column}), tmp_path / f"{name}.parquet", row_group_size=4)
    return tmp_path


@pytest.mark.parametrize("numbers", [range(0, 10), range(0, 1), range(3, 7), range(5, 6), range(6, 7), range(9, 10)])
def test_a_range_is_read_across_files_and_row_groups(stored, numbers):
    read = [(name, load()) for name, load in EncodedImages([stored]).read(numbers) if "b.parquet row 1" not in name]

    assert [value for _, value in read] == [b"%d" % number for number in numbers if number != 7]
    assert all(
        name == str(stored / (f"a.parquet row {number}" if number < 6 else f"b.parquet row {number - 6}"))
        for (name, _), number in zip(read, [number for number in numbers if number != 7], strict=True)
    )


def test_what_is_missing_says_so_when_it_is_loaded(stored):
    ((_, load),) = EncodedImages([stored]).read(range(7, 8))

    with pytest.raises(ValueError, match=r"b\.parquet row 1 needs an image, and there is none"):
        load()


def test_files_and_folders_are_numbered_in_order(tmp_path):
    for name in ("deep/2.png", "1.png", "other.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    images = EncodedImages([tmp_path / "other.bin", tmp_path])

    assert [load() for _, load in images.read(range(3))] == [b"other.bin", b"1.png", b"deep/2.png"]
    assert len(images) == 3


def test_another_file_order_or_number_of_rows_has_another_digest(stored):
    a, b = stored / "a.parquet", stored / "b.parquet"
    digests = {EncodedImages(paths).digest for paths in ([a], [b], [a, b], [b, a])}
    parquet.write_table(parquet.read_table(b).slice(1), b)

    assert len(digests | {EncodedImages([a, b]).digest, EncodedImages([b]).digest}) >= 5
    assert EncodedImages([a]).digest in digests
    assert EncodedImages([a, b, a]).digest not in digests


def test_a_path_that_is_nothing_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="missing needs to be an image file, a parquet file or a folder"):
        EncodedImages([tmp_path / "missing"])
