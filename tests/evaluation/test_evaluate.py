import copy
import json
from itertools import count

import pytest
import torch

from fastdef.attacks import pgd
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Attack, accuracy, attacked_batches, evaluate
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


def test_a_model_in_training_is_judged_in_eval_mode_and_left_in_training(model, dataset):
    expected = [row.accuracy for row in evaluate(model, dataset, attack=Attack(steps=2)).rows]
    trained = copy.deepcopy(model).train()

    found = evaluate(trained, dataset, attack=Attack(steps=2))

    assert [row.accuracy for row in found.rows] == expected
    assert all(module.training for module in trained.modules())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in trained.state_dict().items())


def test_a_report_says_how_it_was_made(model, dataset):
    report = evaluate(model, dataset, attack=Attack(steps=2, seed=7)).to_json()

    assert report["images"] == 20
    assert (report["device"], report["dtype"], report["torch"]) == ("cpu", "float32", torch.__version__)
    assert report["attack"] | {"steps": 2, "seed": 7, "crafted_on": "the undefended model"} == report["attack"]


def test_a_report_says_what_the_defense_computed_in(model, dataset):
    defense = ActiveDefense(model, beta=3.0, max_steps=2, dtype=torch.bfloat16, compile=False)

    report = evaluate(model, dataset, defense=defense, attack=Attack(steps=1)).to_json()
    assert report["dtype"] == report["defense"]["dtype"] == "bfloat16"
    assert report["defense"]["delta"] == defense.delta


def test_attacked_batches_and_accuracy_make_what_evaluate_makes(model, dataset):
    attack = Attack(eps=0.1, steps=3)

    batches = list(attacked_batches(model, dataset, attack, batch_size=8))

    rows = {row.name: row.accuracy for row in evaluate(model, dataset, attack=attack, batch_size=8).rows}
    assert torch.equal(batches[1].attacked, attack(model, batches[1].images, batches[1].labels, batch=1))
    assert torch.equal(torch.cat([batch.ids for batch in batches]), torch.arange(20))
    assert accuracy(model, ((batch.images, batch.labels) for batch in batches)) == rows["clean"]
    assert accuracy(model, ((batch.attacked, batch.labels) for batch in batches)) == rows["attacked"]


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_under_one_is_refused(model, dataset, size):
    with pytest.raises(ValueError, match="batch size from 1 up"):
        evaluate(model, dataset, batch_size=size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "one step"),
        ({"steps": 2.5}, "whole number"),
        ({"eps": 0.0}, "eps > 0"),
        ({"eps": 8.0}, "Attack needs eps in pixel units, such as 8/255, from 0 to 1, got 8.0"),
    ],
)
def test_an_attack_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Attack(**change)


def test_an_empty_data_set_is_refused(model, dataset):
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(model, Dataset(dataset.images[:0], dataset.labels[:0], dataset.classes, "made", "test"))


def test_labels_the_model_has_no_class_for_are_refused(model, dataset):
    wrong = Dataset(dataset.images, dataset.labels + 5, tuple("abcdefgh"), "made", "test")

    with pytest.raises(ValueError, match="3 classes"):
        evaluate(model, wrong)


def test_a_defense_in_the_place_of_its_model_is_refused(model, dataset):
    with pytest.raises(ValueError, match="need a differentiable model"):
        evaluate(ActiveDefense(model, beta=3.0, max_steps=2, compile=False), dataset)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="losses among cross_entropy, margin, got hinge"):
        Attack(losses=("hinge",))


@pytest.mark.parametrize(("max_steps", "delta"), [(1, 1e-6), (3, 1.0), (4, None)])
def test_unconverged_are_those_that_the_cap_cut_off(model, dataset, max_steps, delta):
    defense = ActiveDefense(model, compile=False, beta=3.0, max_steps=max_steps)
    defense.delta = delta or defense.calibrate(dataset.floats(0, 20), ratio=0.999)
    converged = defense.defend(dataset.floats(0, 20)).converged

    found = evaluate(model, dataset, defense=defense, attack=Attack(steps=1), batch_size=8)

    row = next(row for row in found.rows if row.name == "clean, defended")
    assert row.unconverged == int((~converged).sum()) == row.to_json()["unconverged"]
    assert row.unconverged == {1e-6: 20, 1.0: 0}.get(delta, row.unconverged)


def test_seconds_are_those_of_an_image(model, dataset, monkeypatch):
    """The clock moves by one second between a look and the next: 8, 8 and 4 images take one each."""
    clock = count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))

    found = evaluate(model, dataset, attack=Attack(steps=1), batch_size=8)

    assert [row.seconds for row in found.rows] == pytest.approx([3 / 20, 3 / 20])
