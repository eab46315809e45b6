import json

import pytest
import torch

from fastdef.attacks import pgd
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Attack, evaluate
from fastdef.nn import WideResNet


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return WideResNet(10, 1, num_classes=3, in_channels=1).eval()


@pytest.fixture(scope="module")
def dataset(model):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 12, 12), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(1)
    labels[:4] = (labels[:4] + 1) % 3  # four that the model gets wrong
    return Dataset(images, labels, ("a", "b", "c"), "made", "test")


def test_rows_count_what_the_model_and_its_defense_got_right(model, dataset):
    defense = ActiveDefense(model, compile=False, beta=3.0, max_steps=30)
    defense.calibrate(dataset.floats(0, 20))
    attack = Attack(eps=8 / 255, steps=5)

    found = evaluate(model, dataset, defense=defense, attack=attack, batch_size=8)

    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["clean", "attacked", "clean, defended", "attacked, defended"]
    assert (rows["clean"].accuracy.correct, rows["clean"].accuracy.count) == (16, 20)
    answers = defense(dataset.floats(0, 20)).argmax(1)
    assert rows["clean, defended"].accuracy.correct == int((answers == dataset.labels).sum())
    assert len(rows["attacked, defended"].steps) == 20
    assert json.loads(json.dumps(found.to_json()))["rows"]["clean"]["correct"] == 16


def test_the_attack_is_pgd_with_a_start_of_its_own_for_each_batch(model, dataset):
    images, labels = dataset.floats(0, 8), dataset.labels[:8]
    attack = Attack(eps=0.1, steps=3, seed=2)

    first, second = (attack(model, images, labels, batch=batch) for batch in (0, 1))

    generator = torch.Generator().manual_seed(2 * 1_000_003)
    expected = pgd(model, images, labels, eps=0.1, step=0.25 / 3, steps=3, generator=generator)
    assert torch.equal(first, expected)
    assert not torch.equal(first, second)


def test_an_empty_data_set_is_refused(model, dataset):
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(model, Dataset(dataset.images[:0], dataset.labels[:0], dataset.classes, "made", "test"))


def test_labels_the_model_has_no_class_for_are_refused(model, dataset):
    wrong = Dataset(dataset.images, dataset.labels + 5, tuple("abcdefgh"), "made", "test")

    with pytest.raises(ValueError, match="3 classes"):
        evaluate(model, wrong)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="a loss among cross_entropy, margin, got 'hinge'"):
        Attack(loss="hinge")
