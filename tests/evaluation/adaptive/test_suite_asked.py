"""What an adaptive evaluation is asked for, and what it is known by, on a linear model."""

import sys
from dataclasses import replace

import pytest
import torch

from fastdef import distributed
from fastdef.data import sha256
from fastdef.evaluation.adaptive import Answers, Target, evaluate_adaptive, suite
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.suite import Progress
from fastdef.evaluation.adaptive.target import FixedBatch
from fastdef.evaluation.described import described
from tests.evaluation.adaptive.linear import GUARDED, LINEAR, PLAIN, Linear
from tests.evaluation.adaptive.lines import names, told


def opaque(logits, *, random=False):
    """A target that answers with a function of images and ids."""

    def answers(images, ids):
        assert len(images) == len(ids)
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return Answers(logits(images, ids), nothing, nothing.bool())

    return Target.opaque(answers, random=random)


@pytest.mark.parametrize("rows", [[-1], [0, 9], [10]])
def test_rows_that_there_are_not_are_refused_with_their_count_of_images(six, least, rows):
    with pytest.raises(ValueError, match="needs images, and rows from 0 to 8, got 6 and"):
        evaluate_adaptive(PLAIN, six, budget=least, rows=rows)


def test_rows_are_the_budget_s_unless_others_are_asked_for_and_come_once_and_in_order(six, least):
    budget = replace(least, rows=(0,))

    found = evaluate_adaptive(PLAIN, six, budget=budget)
    others = evaluate_adaptive(PLAIN, six, budget=budget, rows=[4, 3, 0, 3])

    assert {line.case.row for line in found.lines} == {0}
    labels = [line.label for line in others.lines]
    assert len(set(labels)) == len(labels)
    assert [line.case.row for line in others.lines] == sorted(line.case.row for line in others.lines)
    assert {line.case.row for line in others.lines} == {0, 3}
    assert {case.row for case in others.not_run} == {4}


def test_every_row_may_be_asked_for(six, least):
    found = evaluate_adaptive(opaque(lambda images, ids: LINEAR(images)), six, budget=least, rows=range(9))

    assert {case.case.row for case in found.lines} | {case.row for case in found.not_run} == set(range(9))


def test_the_data_set_is_as_large_as_the_budget_has_it(six, least):
    found = evaluate_adaptive(PLAIN, six, budget=replace(least, images=3), rows=[0])

    assert found.settings["images"] == found.line(0, sanity.CLEAN).score.count == 3


class Busy(Linear):
    """A linear model that is never asked for nothing."""

    def forward(self, x):
        assert len(x)
        return super().forward(x)


@pytest.mark.parametrize("count", [1, 6])
def test_a_model_answers_to_one_image_and_never_to_none(six, least, count):
    found = evaluate_adaptive(Target.plain(Busy().eval()), six.take(count), budget=least, rows=[0, 3])

    assert found.line(0, sanity.CLEAN).score.count == count


def test_a_folder_of_work_is_gone_on_with_only_if_that_is_asked_for(six, least, tmp_path):
    first = evaluate_adaptive(PLAIN, six, budget=least, rows=[0], folder=tmp_path)

    with pytest.raises(ValueError, match="holds an evaluation already"):
        evaluate_adaptive(PLAIN, six, budget=least, rows=[0], folder=tmp_path)

    assert told(evaluate_adaptive(PLAIN, six, budget=least, rows=[0], folder=tmp_path, resume=True)) == told(first)


@pytest.mark.parametrize(("row", "needed"), [(0, False), (1, True), (2, False), (6, True), (7, True)])
def test_autoattack_is_asked_for_where_a_row_takes_it(monkeypatch, six, least, row, needed):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)

    if needed:
        with pytest.raises(
            ValueError, match=r"^the adaptive evaluation needs pyautoattack: pip install 'fastdef\[eval"
        ):
            evaluate_adaptive(PLAIN, six, budget=least, rows=[row])
    else:
        evaluate_adaptive(PLAIN, six, budget=least, rows=[row])


@pytest.mark.parametrize("label", [4, 5])
def test_labels_that_no_answer_could_have_are_refused(six, least, label):
    found = replace(six, classes=tuple("abcdefgh"), labels=torch.tensor([0, label, 0, 1, 0, 1]))

    with pytest.raises(ValueError, match=f"needs labels below 4, got {label}"):
        evaluate_adaptive(PLAIN, found, budget=least, rows=[0])


def test_the_last_class_is_a_label(six, least):
    found = evaluate_adaptive(PLAIN, replace(six, labels=six.labels + 2), budget=least, rows=[0])

    assert found.line(0, sanity.CLEAN).score.mean == 0


def turning(change, *, random=False):
    """A target whose answers are larger by ``change`` every time."""
    turns = iter(range(10_000))
    return opaque(lambda images, ids: LINEAR(images) * 0 + 1 + change * next(turns), random=random)


def test_a_target_that_does_not_say_that_it_is_random_may_round_and_no_more(six, least):
    with pytest.raises(ValueError, match="says whether it is random, got one that is and does not"):
        evaluate_adaptive(turning(0.003), six, budget=least, rows=[0])

    assert evaluate_adaptive(turning(0.001), six, budget=least, rows=[0]).lines
    assert evaluate_adaptive(turning(0.003, random=True), six, budget=least, rows=[0]).random


def test_what_is_no_number_twice_is_not_random(six, least):
    target = opaque(lambda images, ids: torch.full((len(images), 4), float("nan")))

    found = evaluate_adaptive(target, six, budget=least, rows=[0])

    assert found.line(0, sanity.CLEAN).score.unanswered == 6


def test_two_classes_are_enough_and_one_is_not(six, least):
    two, one = (opaque(lambda images, ids, k=k: torch.eye(1, k).repeat(len(images), 1)) for k in (2, 1))

    assert evaluate_adaptive(two, six, budget=least, rows=[0]).line(0, sanity.CLEAN).score.mean == 0.5
    with pytest.raises(ValueError, match="needs at least two classes, got 1: no answer could be wrong"):
        evaluate_adaptive(one, replace(six, labels=six.labels * 0), budget=least, rows=[0])


@pytest.mark.parametrize("kind", ["classifier", "surrogate"])
def test_a_model_without_gradients_is_refused(six, least, kind):
    class Sign(Linear):
        def forward(self, x):
            return super().forward(x).detach()

    sign = Sign().eval()
    target, surrogate = (Target.plain(sign), None) if kind == "classifier" else (PLAIN, sign)

    with pytest.raises(ValueError, match="need a differentiable model"):
        evaluate_adaptive(target, six, budget=least, rows=[0], surrogate=surrogate)


@pytest.mark.parametrize(
    ("target", "rows", "given"),
    [(PLAIN, [3], True), (PLAIN, [0], False), (opaque(lambda images, ids: LINEAR(images)), [0, 3], False)],
)
def test_gradients_are_held_against_differences_where_row_3_attacks_by_them(six, least, target, rows, given):
    found = evaluate_adaptive(target, six, budget=least, rows=rows)

    assert (found.alignment is not None) == given
    assert not given or found.alignment > 0.99


def test_what_takes_a_row_s_images_is_run_where_that_row_is(six, least):
    alone, both = (evaluate_adaptive(GUARDED, six, budget=least, rows=rows) for rows in ([2], [1, 2]))

    name, reason = "AutoAttack on the same", "it takes another row's images, and that was not asked for"
    assert (2, name, reason) in [(case.row, case.name, case.reason) for case in alone.not_run]
    assert f"2 {name}" not in names(alone)
    assert f"2 {name}" in names(both)
    assert name not in [case.name for case in both.not_run]


def test_a_model_s_weights_are_as_they_were_and_take_no_gradient_meanwhile(six, least):
    model, surrogate = Linear().eval(), Linear().eval()
    seen = set()

    def look(progress):
        seen.add((model.weight.requires_grad, surrogate.weight.requires_grad))

    evaluate_adaptive(Target.plain(model), six, budget=least, rows=[0], surrogate=surrogate, progress=look)

    assert seen == {(False, False)}
    assert model.weight.requires_grad
    assert surrogate.weight.requires_grad


def test_progress_is_of_the_case_and_of_the_whole(six, least):
    seen = []

    evaluate_adaptive(opaque(lambda images, ids: LINEAR(images)), six, budget=least, rows=[0], progress=seen.append)

    assert seen == [
        Progress("0 clean", 4, 6, 4 / 12),
        Progress("0 clean", 6, 6, 6 / 12),
        Progress("0 random noise", 4, 6, 10 / 12),
        Progress("0 random noise", 6, 6, 1.0),
    ]


def test_a_radius_and_a_seed_are_those_that_were_given_or_8_255ths_and_0(six, least):
    given = evaluate_adaptive(PLAIN, six, budget=least, rows=[0], eps=0.25, seed=5)
    found = evaluate_adaptive(PLAIN, six, budget=least, rows=[0])

    assert (given.settings["eps"], given.settings["seed"]) == (0.25, 5)
    assert given.line(0, sanity.NOISE).case.eps == 0.25
    assert (found.settings["eps"], found.settings["seed"]) == (8 / 255, 0)


def test_several_ranks_need_a_folder(monkeypatch, six, least):
    monkeypatch.setattr(distributed, "on_rank0", lambda work: work())
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    with pytest.raises(ValueError, match="on 2 processes needs a folder that all of them see, got none"):
        evaluate_adaptive(PLAIN, six, budget=least, rows=[0])


def test_the_settings_are_all_that_the_accuracies_depend_on(six, tiny, restless):
    surrogate = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    target = Target.defended(restless)

    assert suite._settings(target, six, tiny, 0.25, surrogate, 3) == {
        "data": "made test",
        "images": 6,
        "images_sha256": six.digest(),
        "eps": 0.25,
        "seed": 3,
        "budget": tiny.to_json(),
        "model_sha256": sha256([value for _, value in sorted(restless.model.state_dict().items())]),
        "defense": described(restless),
        "surrogate_sha256": sha256([surrogate[1].bias, surrogate[1].weight]),
        "device": "cpu",
        "torch": torch.__version__,
    }


def test_the_settings_of_what_only_answers_have_its_identity(six, tiny):
    target = replace(opaque(lambda images, ids: LINEAR(images)), identity="a")

    found = suite._settings(target, six, tiny, 0.25, None, 3)

    assert (found["model_sha256"], found["defense"], found["surrogate_sha256"]) == ("a", None, None)


@pytest.mark.parametrize(("random", "images", "size"), [(False, 5, 4), (False, 3, 3), (True, 3, 4)])
def test_a_budget_that_compiles_has_batches_of_one_size(monkeypatch, tiny, random, images, size):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    target = Target.plain(LINEAR, random=random)

    fast = suite._fast(target, replace(tiny, compile=True), images)

    assert isinstance(fast.classifier, FixedBatch)
    assert (fast.classifier.model, fast.classifier.size, fast.batch) == (LINEAR, size, size)
    assert fast.answer is target.answer


def test_another_budget_or_no_classifier_leaves_the_target_as_it_is(tiny):
    only = opaque(lambda images, ids: LINEAR(images))

    assert suite._fast(PLAIN, tiny, 5) is PLAIN
    assert suite._fast(only, replace(tiny, compile=True), 5) is only


def test_the_fast_classifier_is_compiled(monkeypatch, tiny):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(model) or model)

    suite._fast(PLAIN, replace(tiny, compile=True), 5)

    assert compiled == [LINEAR]
