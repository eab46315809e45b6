import hashlib

import pytest
import torch

from fastdef.defense import ActiveDefense
from fastdef.export.target import exported_target


def test_an_export_answers_as_the_defense_it_was_made_of(folder, checkpoint, images):
    defense = ActiveDefense.from_checkpoint(checkpoint, seed=5, compile=False)
    target = exported_target(folder, seed=5)

    answers = target.answer(images, torch.arange(len(images)) + 7)

    expected = defense.defend(images, ids=torch.arange(len(images)) + 7)
    assert target.classifier is None
    assert target.random
    assert torch.equal(answers.logits.argmax(1), expected.logits.argmax(1))
    assert (answers.steps - expected.steps).abs().max() <= 1
    assert torch.equal(answers.capped, ~expected.converged)


def test_an_export_is_known_by_what_names_all_its_files(folder):
    assert exported_target(folder).identity == hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a model\.json, and there is no"):
        exported_target(tmp_path)
