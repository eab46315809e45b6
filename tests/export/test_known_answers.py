"""An engine that answers otherwise than PyTorch does not start."""

import base64
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fastdef.checkpoint import Checkpoint
from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
from fastdef.export.known_answers import EXACT, REDUCED, KnownAnswers
from fastdef.export.manifest import name_files, read, sha256
from fastdef.export.target import exported_target

SHAPE = (1, 12, 12)


@pytest.fixture(scope="module")
def known(folder):
    return KnownAnswers.read(read(folder / "model.json"))


@pytest.fixture(scope="module")
def answered(folder, known):
    with load_engine(folder) as engine:
        return engine(known.images, ids=known.ids, seed=known.seed)


def test_they_are_of_different_lengths_and_one_image_comes_twice(known):
    assert len(set(known.steps.tolist())) >= 2
    np.testing.assert_array_equal(known.images[0], known.images[-1])
    assert known.ids[0] == known.ids[-1]
    assert known.steps.max() > 0
    assert known.ids.max() > 2**32


def test_the_lines_that_the_readme_has_for_other_engines_suffice(folder, known, answered):
    described = json.loads((folder / "model.json").read_text())

    known_answers = described["known_answers"]
    images = np.frombuffer(base64.b64decode(known_answers["images"]), np.uint8).astype(np.float32) / 255

    np.testing.assert_array_equal(images.reshape(-1, *described["image"]["shape"]), known.images)
    np.testing.assert_array_equal(answered.steps, known_answers["steps"])
    np.testing.assert_allclose(answered.probabilities, known_answers["probabilities"], rtol=0, atol=1e-3)


def change(answered, field, row, value):
    values = getattr(answered, field).copy()
    values[row] += value
    return replace(answered, **{field: values})


# What a wrong engine does: a step too many, other noise for an id of more than 32 bits, one row's answer for another.
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda a: change(a, "steps", 1, 1), "steps"),
        (lambda a: change(a, "smoothed", 1, 0.001), "smoothed images"),
        (lambda a: change(a, "smoothed", 1, np.nan), "smoothed images"),
        (lambda a: change(a, "probabilities", 2, 0.002), "probabilities"),
        (lambda a: change(a, "probabilities", 2, np.nan), "probabilities"),
        (lambda a: replace(a, smoothed=np.roll(a.smoothed, 1, axis=0)), "smoothed images"),
    ],
)
def test_each_way_to_differ_is_refused_by_its_name(known, answered, spoil, named):
    known.check(answered, EXACT, sigma=0.075)

    with pytest.raises(ValueError, match=f"not give the answers that the export is known to give: {named}"):
        known.check(spoil(answered), EXACT, sigma=0.075)


def test_where_sigma_is_next_to_nothing_rounding_is_allowed(known, answered):
    known.check(change(answered, "smoothed", 1, 1e-6), EXACT, sigma=1e-6)

    with pytest.raises(ValueError, match="smoothed images"):
        known.check(change(answered, "smoothed", 1, 1e-4), EXACT, sigma=1e-6)


def test_sixteen_bits_are_allowed_more_but_no_other_noise(known, answered):
    known.check(change(answered, "smoothed", 1, 0.001), REDUCED, sigma=0.075)

    with pytest.raises(ValueError, match="smoothed images"):
        known.check(change(answered, "smoothed", 1, 0.03), REDUCED, sigma=0.075)


@pytest.mark.parametrize(("file", "driven"), [("defended", False), ("step", True), ("classifier", True)])
def test_an_engine_with_other_weights_does_not_start(copied, file, driven):
    spoil_weights(copied / f"{file}.onnx")

    with pytest.raises(ValueError, match="this engine does not give the answers"):
        load_engine(copied, driven=driven)


def test_a_classifier_with_other_weights_is_not_attacked(checkpoint, tmp_path):
    plain = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, None, None)
    export_onnx(plain, tmp_path, shape=SHAPE)
    exported_target(tmp_path)
    spoil_weights(tmp_path / "classifier.onnx")

    with pytest.raises(ValueError, match="this engine does not give the answers"):
        exported_target(tmp_path)


def spoil_weights(path):
    """The largest weights are half again as large, and the manifest names the file."""
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    largest.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(largest) * np.float32(1.5), largest.name))
    content = model.SerializeToString()
    path.write_bytes(content)
    facts = read(path.parent / "model.json")["files"][path.name]
    name_files(path.parent / "model.json", {path.name: {**facts, "sha256": sha256(content)}})


@pytest.mark.parametrize(
    "damage",
    [
        lambda known: known.clear(),
        lambda known: known.update(every=0),
        lambda known: known.update(images="not base64"),
        lambda known: known.update(images=known["images"][: len(known["images"]) // 8 * 4]),
        lambda known: known.update(ids=[2**64] * len(known["ids"])),
        lambda known: known.update(ids=[0] * 1000),
        lambda known: known.update(steps=None),
        lambda known: known.update(probabilities=[[0.5]]),
    ],
)
def test_a_description_without_them_or_with_damaged_ones_is_refused_in_one_line(folder, damage):
    described = read(folder / "model.json")
    damage(described["known_answers"])

    with pytest.raises(ValueError, match=r"^the export holds no known answers \(.*\): export it again$"):
        KnownAnswers.read(described)
