from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive.attack_case import Predictions
from fastdef.evaluation.adaptive.journal import Journal, Unit, joined

SETTINGS, KNOWN = {"seed": 0, "eps": 0.25}, {"answers": [1.0, 2.0]}
FIELDS = ("right", "steps", "capped", "loss", "answered")


@pytest.fixture
def unit():
    answers = torch.tensor([[True, False], [False, False]])
    steps = torch.tensor([[3, 4], [5, 6]], dtype=torch.int32)
    predictions = Predictions(answers, steps, ~answers, torch.tensor([0.5, 1.5]), answers | True)
    images, examples = torch.rand(2, 1, 2, 2), torch.rand(1, 1, 2, 2)
    return Unit(predictions, images, examples, torch.tensor([1]), crafting=1.25, evaluating=0.5)


def journal(folder, *, settings=SETTINGS, known=KNOWN, resume=False):
    return Journal(folder, settings, known, resume=resume)


def same(first, second):
    tensors = [
        [*(getattr(unit.predictions, name) for name in FIELDS), unit.images, unit.examples, unit.places]
        for unit in (first, second)
    ]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*tensors, strict=True))
    assert (first.crafting, first.evaluating) == (second.crafting, second.evaluating)


def test_a_unit_is_read_as_it_was_written_and_by_its_own_key_and_number(tmp_path, unit):
    made = journal(tmp_path / "a" / "folder")
    other = replace(unit, crafting=7.0, images=unit.images[:0])

    made.write("3-x", 0, unit)
    made.write("3-x", 1, other)

    same(made.read("3-x", 0), unit)
    same(made.read("3-x", 1), other)
    assert made.read("3-x", 2) is made.read("3-y", 0) is None


def test_a_unit_is_a_file_named_after_its_case_and_number(tmp_path, unit):
    journal(tmp_path).write("3-x", 12, unit)

    assert [path.name for path in (tmp_path / "units").iterdir()] == ["3-x-00012.safetensors"]


def test_what_is_no_whole_tensor_of_its_own_is_written_too(tmp_path, unit):
    images = torch.rand(1, 2, 2, 2, requires_grad=True)
    parts = replace(unit, images=images.transpose(2, 3)[:, :1], examples=images[:, :1])
    made = journal(tmp_path)

    made.write("3-x", 0, parts)

    same(made.read("3-x", 0), parts)


def test_work_of_the_same_settings_is_gone_on_with(tmp_path, unit):
    journal(tmp_path).write("3-x", 0, unit)

    same(journal(tmp_path, resume=True).read("3-x", 0), unit)
    same(journal(tmp_path, resume=True).read("3-x", 0), unit)  # and the settings are there still


def test_work_that_there_is_not_is_begun_though_it_be_resumed(tmp_path):
    assert journal(tmp_path, resume=True).read("3-x", 0) is None


def test_units_of_no_settings_are_nobody_s(tmp_path, unit):
    journal(tmp_path).write("3-x", 0, unit)
    (tmp_path / "settings.json").unlink()

    assert journal(tmp_path, resume=True).read("3-x", 0) is None
    assert (tmp_path / "units").is_dir()


def test_a_folder_that_holds_work_is_refused_unless_it_is_resumed(tmp_path, unit):
    journal(tmp_path).write("3-x", 0, unit)

    with pytest.raises(ValueError, match="holds an evaluation already; resume it, or give another folder"):
        journal(tmp_path)

    assert journal(tmp_path, resume=True).read("3-x", 0) is not None


def test_work_of_other_settings_is_refused(tmp_path):
    journal(tmp_path)

    with pytest.raises(ValueError, match="seed was 0, got 1"):
        journal(tmp_path, settings={**SETTINGS, "seed": 1}, resume=True)


@pytest.mark.parametrize("known", [{"answers": [1.0, 2.1]}, {}, {**KNOWN, "purified": [1.0]}])
def test_the_work_on_another_target_is_refused(tmp_path, known):
    journal(tmp_path)

    with pytest.raises(ValueError, match="evaluate into another folder"):
        journal(tmp_path, known=known, resume=True)


def test_a_record_without_what_the_target_is_known_by_is_of_a_target_of_which_nothing_is_known(tmp_path):
    journal(tmp_path, known={})

    journal(tmp_path, known={}, resume=True)
    with pytest.raises(ValueError, match="its answers are others now"):
        journal(tmp_path, resume=True)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_cut_unit_is_refused_by_its_path(tmp_path, unit, length):
    made = journal(tmp_path)
    made.write("3-x", 0, unit)
    path = tmp_path / "units" / "3-x-00000.safetensors"
    path.write_bytes(path.read_bytes()[:length])

    with pytest.raises(ValueError, match=r"3-x-00000\.safetensors is not a whole unit of an evaluation: \S[^\n]*$"):
        made.read("3-x", 0)


@pytest.mark.parametrize(
    ("lacks", "metadata"),
    [
        ("loss", {"seconds": "[1, 2]"}),
        ("places", {"seconds": "[1, 2]"}),
        (None, None),
        (None, {"other": "1"}),
        (None, {"seconds": "[1]"}),
        (None, {"seconds": "[1, 2, 3]"}),
        (None, {"seconds": "1"}),
        (None, {"seconds": "no"}),
    ],
)
def test_a_unit_that_lacks_something_is_refused(tmp_path, unit, lacks, metadata):
    from safetensors.torch import save_file

    made = journal(tmp_path)
    tensors = {name: getattr(unit.predictions, name) for name in FIELDS}
    tensors |= {"images": unit.images, "examples": unit.examples, "places": unit.places}
    tensors.pop(lacks, None)
    save_file(tensors, tmp_path / "units" / "3-x-00000.safetensors", metadata=metadata)

    with pytest.raises(ValueError, match="is not a whole unit of an evaluation"):
        made.read("3-x", 0)


def test_the_predictions_of_units_are_joined_in_order(unit):
    other = replace(unit.predictions, loss=torch.tensor([9.0, 8.0]), right=~unit.predictions.right)

    found = joined([unit, replace(unit, predictions=other)])

    assert found.loss.tolist() == [0.5, 1.5, 9.0, 8.0]
    assert all(
        torch.equal(getattr(found, name), torch.cat([getattr(unit.predictions, name), getattr(other, name)]))
        for name in FIELDS
    )


def test_a_damaged_record_is_refused(tmp_path):
    journal(tmp_path)
    (tmp_path / "settings.json").write_text("{")

    with pytest.raises(ValueError, match=r"settings\.json does not hold the settings of an evaluation"):
        journal(tmp_path, resume=True)
