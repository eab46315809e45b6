import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
from fastdef.export.manifest import name_files, read, read_classes, read_description, sha256, verified
from fastdef.export.opening import CPU
from fastdef.export.parity import check_parity
from fastdef.export.quantized import cost, export_small
from fastdef.export.sessions import OnnxSession, TensorRTSession
from fastdef.export.target import exported_target
from fastdef.export.tensorrt_engines import export_engines
from fastdef.export.triton_repository import write_repository

WAYS_IN = {
    "the whole engine": (lambda folder, *_: load_engine(folder), "defended.onnx"),
    "the driven engine's step": (lambda folder, *_: load_engine(folder, driven=True), "step.onnx"),
    "the driven engine's classifier": (lambda folder, *_: load_engine(folder, driven=True), "classifier.onnx"),
    "what the adaptive evaluation attacks": (lambda folder, *_: exported_target(folder), "step.onnx"),
    "a session": (lambda folder, *_: OnnxSession(folder / "noised.onnx", CPU), "noised.onnx"),
    "a TensorRT session": (lambda folder, *_: TensorRTSession(folder / "defended.engine"), "defended.engine"),
    "the check of parity": (lambda folder, checkpoint, images: check_parity(checkpoint, folder, images), "step.onnx"),
    "the small classifiers": (
        lambda folder, checkpoint, images: export_small(checkpoint, folder, images),
        "classifier.onnx",
    ),
    "what the small classifiers cost": (
        lambda folder, checkpoint, images: cost(folder, images, torch.zeros(9)),
        "classifier.int8.onnx",
    ),
    "the engines' builder": (lambda folder, *_: export_engines(folder, names=["noised"]), "noised.masked.onnx"),
    "the server's repository": (lambda folder, *_: write_repository(folder, folder / "models"), "step.onnx"),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_file_of_which_one_bit_is_another_is_refused_before_it_is_parsed(copied, checkpoint, images, way):
    if way == "the engines' builder":
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, or a machine with tensorrt")
    act, name = WAYS_IN[way]
    made_for(copied, name, checkpoint, images)
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)

    with pytest.raises(ValueError, match=f"{name} is not the file that .*model.json names: its sha256 is another"):
        act(copied, checkpoint, images)


def made_for(folder, name, checkpoint, images):
    """The files that a plain export has not."""
    if name == "defended.engine":
        (folder / name).write_bytes(b"an engine")
        name_files(folder / "model.json", {name: {"sha256": sha256(b"an engine")}})
    if name == "classifier.int8.onnx":
        export_small(checkpoint, folder, images)


def test_a_file_that_the_description_does_not_name_is_refused(copied):
    description = json.loads((copied / "model.json").read_text())
    del description["files"]["classifier.onnx"], description["files"]["defended.onnx"]
    (copied / "model.json").write_text(json.dumps(description))
    (copied / "defended.onnx").unlink()

    with pytest.raises(ValueError, match=r"names no classifier\.onnx"):
        exported_target(copied)


def test_a_file_that_stands_alone_may_be_opened(copied):
    (copied / "model.json").unlink()

    verified(copied / "defended.onnx")
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


def test_more_steps_than_anyone_waits_for_are_refused_to_write_and_to_read(checkpoint, images, tmp_path):
    defense = {**checkpoint.defense, "max_steps": 50_001, "outer_loops": 2}
    described = {"image": {"shape": [1, 12, 12]}, "defense": defense}
    needed = r"max_steps \* outer_loops of at most 100,000, got 50001 \* 2"

    with pytest.raises(ValueError, match=needed):
        export_onnx(replace(checkpoint, defense=defense), tmp_path / "out", shape=(1, 12, 12))
    with pytest.raises(ValueError, match=needed):
        read_description(json.dumps(described), source=tmp_path)

    assert not (tmp_path / "out").exists()


def test_a_threshold_that_is_a_huge_whole_number_is_a_number(checkpoint):
    described = {"image": {"shape": [1, 12, 12]}, "defense": {**checkpoint.defense, "delta": 2**70}}

    found = read_description(json.dumps(described), source=Path("step.onnx"))["defense"]["delta"]

    assert (found, type(found)) == (2.0**70, float)


def test_the_classes_are_told(folder, tmp_path):
    assert read_classes(folder / "model.json") == ("a", "b", "c")
    (tmp_path / "model.json").write_text('{"files": {}, "classes": [1]}')
    with pytest.raises(ValueError, match="it names no classes"):
        read_classes(tmp_path / "model.json")


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', "[" * 100_000, "\x00"])
def test_a_damaged_description_is_one_line(tmp_path, content):
    (tmp_path / "model.json").write_text(content)

    with pytest.raises(ValueError, match="is not the description of an export") as refused:
        read(tmp_path / "model.json")

    assert "\n" not in str(refused.value)
