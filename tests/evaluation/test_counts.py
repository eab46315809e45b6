"""What a row and a report keep of an evaluation, on a classifier whose answers can be told in the head."""

import platform
from itertools import count

import pytest
import torch

from fastdef.attacks import GradientShares
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.evaluation import Accuracy, Attack, Evaluation, evaluate
from fastdef.evaluation.evaluate import Row
from tests.evaluation.tiny import Brighter, dataset


def row(name="attacked", correct=1, of=2, seconds=1.0, **counts):
    return Row(name, Accuracy(correct, of), seconds, **counts)


def by_name(evaluation):
    return {row.name: row for row in evaluation.rows}


def test_two_rows_join_to_one_of_all_their_images():
    first = row(correct=1, of=2, seconds=1.0, steps=[3, 1], unconverged=1, unanswered=4, vanished=16)
    second = row(correct=2, of=6, seconds=2.0, steps=[2], unconverged=2, unanswered=8, vanished=32)

    joined = first.joined(second)

    assert joined == Row("attacked", Accuracy(3, 8), 14 / 8, [3, 1, 2], unconverged=3, unanswered=12, vanished=48)


def test_a_row_of_which_nothing_else_is_known_counts_nothing_else():
    line = row(correct=1, of=2, seconds=0.5).to_json()

    assert line == {**Accuracy(1, 2).to_json(), "unanswered": 0, "vanished": 0, "seconds_per_image": 0.5}
    assert row().refusal == ""


@pytest.mark.parametrize(
    ("steps", "median", "most"), [([5], 5, 5), ([9, 1], 9, 9), ([7, 1, 4], 4, 7), ([8, 2, 6, 4], 6, 8)]
)
def test_steps_are_told_by_their_median_and_their_maximum(steps, median, most):
    line = row(steps=steps, unconverged=1).to_json()

    assert (line["steps_median"], line["steps_max"], line["unconverged"]) == (median, most, 1)


def test_no_image_is_cut_off_if_nothing_is_said_of_it():
    assert row(steps=[4]).to_json()["unconverged"] == 0


def test_without_a_defense_no_image_is_cut_off_and_every_class_is_an_answer():
    found = evaluate(Brighter(), dataset(0.6, 0.4, 0.3), attack=Attack(eps=0.01, steps=1))

    assert [(row.steps, row.unconverged, row.unanswered) for row in found.rows] == [([], 0, 0)] * 2


def test_a_row_with_too_many_untested_images_says_so_by_its_name():
    refused = row("attacked, defended", correct=50, of=100, vanished=3)

    assert refused.refusal.startswith("attacked, defended: 3 of 100 images")
    assert refused.to_json()["vanished"] == 3


def test_a_report_has_every_part():
    rows = [row("clean", 2, 2), row("attacked", 2, 2, vanished=2)]
    shares = {"margin": GradientShares(count=4, zero=1)}
    attack = Attack(eps=0.25, steps=3, step=0.5, losses=("margin",), seed=9)

    report = Evaluation(rows, attack, "made test", "cpu", "float32", {"kind": "active"}, shares).to_json()

    assert report == {
        "data": "made test",
        "images": 2,
        "attack": {
            "eps": 0.25,
            "steps": 3,
            "step": 0.5,
            "losses": ("margin",),
            "seed": 9,
            "crafted_on": "the undefended model",
        },
        "device": "cpu",
        "dtype": "float32",
        "defense": {"kind": "active"},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradients": {"margin": {"count": 4, "zero": 0.25, "nan": 0, "saturated": 0}},
        "refusals": [rows[1].refusal],
        "rows": {"clean": rows[0].to_json(), "attacked": rows[1].to_json()},
    }


def test_an_evaluation_without_an_attack_is_by_pgd_20_and_says_of_which_images():
    found = evaluate(Brighter(), dataset(0.6))

    assert found.attack == Attack()
    assert (found.data, found.device, found.dtype, found.defense) == ("made test", "cpu", "float32", None)


def test_what_is_through_is_told_batch_by_batch():
    told = []

    evaluate(Brighter(), dataset(*[0.6] * 7), attack=Attack(steps=1), batch_size=3, progress=told.append)

    assert told == [3, 3, 1]


def test_batches_are_of_256_images_if_nothing_else_is_said():
    told = []

    evaluate(Brighter(), dataset(*[0.6] * 257), attack=Attack(steps=1), progress=told.append)

    assert told == [256, 1]


def test_the_gradients_of_all_batches_are_counted_by_loss_though_a_batch_that_fell_has_met_one_alone():
    data = dataset(0.505, 0.9, 0.505)  # the attack fells the dim ones at once

    found = evaluate(Brighter(), data, attack=Attack(eps=0.02, steps=2), batch_size=1)

    assert list(found.gradients) == ["cross_entropy", "margin"]
    assert {loss: shares.count for loss, shares in found.gradients.items()} == {"cross_entropy": 6, "margin": 2}
    assert by_name(found)["attacked"].accuracy == Accuracy(1, 3)


@pytest.mark.parametrize("label", [2, 3])
def test_a_label_that_the_model_has_no_class_for_is_refused(label):
    wrong = dataset(0.6, 0.6, labels=[0, label], classes=("bright", "dark", "third", "fourth"))

    with pytest.raises(ValueError, match=f"evaluate needs labels that the model has: 2 classes, got a label {label}"):
        evaluate(Brighter(), wrong)


def test_an_empty_data_set_is_refused_before_anything_is_asked_of_the_model():
    given = dataset(0.6)
    nothing = Dataset(given.images[:0], given.labels[:0], given.classes, "made", "test")

    with pytest.raises(ValueError, match="evaluate needs at least one image, got an empty data set"):
        evaluate(None, nothing)


def test_the_model_never_meets_an_empty_batch():
    class Flat(Brighter):
        def forward(self, x):
            return super().forward(x.view(len(x), 1, -1, 3))  # -1 is unknown where there is no image

    found = evaluate(Flat(), dataset(0.6, 0.7), attack=Attack(eps=0.01, steps=1))

    assert by_name(found)["clean"].accuracy == Accuracy(2, 2)


def test_the_last_label_that_the_model_has_a_class_for_is_taken():
    found = evaluate(Brighter(), dataset(0.6, 0.4, labels=[0, 1]), attack=Attack(eps=0.01, steps=1))

    assert by_name(found)["clean"].accuracy == Accuracy(2, 2)


def test_a_model_without_a_gradient_has_vanished_under_attack_alone():
    found = by_name(evaluate(Brighter(0.0), dataset(0.6, 0.7), attack=Attack(steps=2)))

    assert {name: row.vanished for name, row in found.items()} == {"clean": 0, "attacked": 2}


def test_an_image_that_is_wrong_anyway_has_not_vanished():
    found = by_name(evaluate(Brighter(0.0), dataset(0.6, 0.7, labels=[0, 1]), attack=Attack(steps=2)))

    assert found["attacked"].accuracy == Accuracy(1, 2)
    assert found["attacked"].vanished == 1


def test_a_defended_row_counts_what_vanished_under_the_attack_that_it_answers():
    defense = ActiveDefense(Brighter(0.0), compile=False, beta=3.0, max_steps=2)

    found = by_name(evaluate(defense.model, dataset(0.6, 0.7), defense=defense, attack=Attack(steps=2)))

    right = found["attacked, defended"].accuracy.correct
    assert found["attacked, defended"].vanished == right > 0
    assert found["clean, defended"].vanished == 0


def test_a_defended_row_has_the_steps_and_the_seconds_of_each_image(monkeypatch):
    """The clock moves by one second between a look and the next: two batches, of two images and of one."""
    defense = ActiveDefense(Brighter(), compile=False, beta=3.0, max_steps=3)
    data = dataset(0.6, 0.7, 0.8)
    defended = defense.defend(data.floats(0, 3), ids=torch.arange(3))
    clock = count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))

    found = by_name(evaluate(defense.model, data, defense=defense, attack=Attack(steps=1), batch_size=2))

    assert found["clean, defended"].steps == defended.steps.tolist()
    assert [row.seconds for row in found.values()] == pytest.approx([2 / 3] * 4)
    assert found["clean"].steps == []


def test_images_keep_the_noise_of_their_place_in_the_data_set():
    """A batch's images are defended as the whole data set's are, whatever the size of the batches."""
    defense = ActiveDefense(Brighter(), compile=False, beta=3.0, sigma=0.5, max_steps=3)
    data = dataset(*[0.5, 0.51, 0.49, 0.52, 0.48] * 4)
    expected = defense.defend(data.floats(0, 20), ids=torch.arange(20)).logits.argmax(1)

    found = evaluate(defense.model, data, defense=defense, attack=Attack(steps=1), batch_size=3)

    assert by_name(found)["clean, defended"].accuracy.correct == int((expected == 0).sum())
