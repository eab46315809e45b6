import json
from dataclasses import replace

import pytest

from fastdef.export.answering import exported_target
from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
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


def test_a_folder_whose_export_was_cut_short_is_refused(copied):
    """Its classifier is whole and would answer, but without the defense that was still to be written."""
    for name in ("model.json", "defended.onnx"):
        (copied / name).unlink()

    for open_folder in (exported_target, load_engine, lambda folder: load_engine(folder, driven=True)):
        with pytest.raises(ValueError, match=r"there is no .*model\.json: export it again"):
            open_folder(copied)


def test_what_an_older_export_left_is_not_answered_with(copied, checkpoint, images):
    plain = replace(checkpoint, defense=None)
    export_onnx(plain, copied, shape=tuple(images.shape[1:]))

    assert (copied / "defended.onnx").is_file()
    assert not exported_target(copied).random


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', "[" * 100_000, "\x00"])
def test_a_damaged_description_is_one_line(tmp_path, content):
    (tmp_path / "model.json").write_text(content)

    with pytest.raises(ValueError, match="is not the description of an export") as refused:
        read(tmp_path / "model.json")

    assert "\n" not in str(refused.value)
