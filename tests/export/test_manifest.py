import json

import pytest

from fastdef.export.answering import exported_target
from fastdef.export.engine import load_engine
from fastdef.export.manifest import read, verify


@pytest.mark.parametrize("name", ["defended.onnx", "step.onnx", "classifier.onnx"])
def test_a_file_of_which_one_bit_is_another_is_refused_before_it_is_parsed(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)

    with pytest.raises(ValueError, match=f"{name} is not the file that .*model.json names: its sha256 is another"):
        load_engine(copied, driven=name != "defended.onnx")


def test_a_file_that_the_description_does_not_name_is_refused(copied):
    description = json.loads((copied / "model.json").read_text())
    del description["files"]["classifier.onnx"], description["files"]["defended.onnx"]
    (copied / "model.json").write_text(json.dumps(description))
    (copied / "defended.onnx").unlink()

    with pytest.raises(ValueError, match=r"names no classifier\.onnx"):
        exported_target(copied)


def test_a_file_that_stands_alone_may_be_opened(copied):
    (copied / "model.json").unlink()

    verify(copied / "defended.onnx")
    load_engine(copied / "defended.onnx").close()


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', "[" * 100_000, "\x00"])
def test_a_damaged_description_is_one_line(tmp_path, content):
    (tmp_path / "model.json").write_text(content)

    with pytest.raises(ValueError, match="is not the description of an export") as refused:
        read(tmp_path / "model.json")

    assert "\n" not in str(refused.value)
