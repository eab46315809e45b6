import copy
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

import fastdef
from fastdef import distributed
from fastdef.data import Dataset, sha256
from fastdef.defense.noise import uniform_noise
from fastdef.evaluation.adaptive import Answers, Target, evaluate_adaptive, suite
from fastdef.evaluation.adaptive.attack_case import Attack, AttackCase, Kept, Predictions
from fastdef.evaluation.adaptive.journal import Unit
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.suite import Progress
from fastdef.evaluation.adaptive.target import FixedBatch
from fastdef.evaluation.described import described
from fastdef.nn import build, convert_to_afa, convert_to_multi_bn, parse_architecture
from tests.evaluation.adaptive.linear import GUARDED, LINEAR, PLAIN, SIDE, Linear


def told(found):
    """What must not depend on interruptions: everything but times."""
    lines = found.to_json()["lines"]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


def names(found):
    return {line.label for line in found.lines}


@pytest.fixture(scope="module")
def whole(defense, dataset, tiny):
    return evaluate_adaptive(Target.defended(defense), dataset, budget=tiny, surrogate=defense.model)


def test_every_row_of_a_defended_model_is_there(whole):
    assert {line.case.row for line in whole.lines} == set(range(9))
    assert whole.not_run == []
    assert {"2 AutoAttack on the same", "4 APGD-CE, smoothed unroll of 2 steps", "6 RayS"} <= names(whole)
    assert sum("max(L_F, delta)" in name for name in names(whole)) == 10


def test_the_headline_is_the_lowest_of_what_counts_by_one_half_of_the_noise_and_judged_by_the_other(whole):
    counted = [line for line in whole.lines if line.case.counts]

    assert whole.headline.score.selection == min(line.score.selection for line in counted)
    assert not any(line.case.counts for line in whole.lines if line.case.row in (0, 1))
    assert f"{whole.headline.score.judgement:.1%}" in whole.sentence
    assert whole.to_json()["headline"] == whole.headline.score.judgement
    assert all(line.case.eps <= 8 / 255 for line in counted)


def test_noise_samples_images_and_steps_are_as_the_budget_says(whole, tiny):
    clean = whole.line(0, sanity.CLEAN).score
    bpda = next(line.score for line in whole.lines if line.label == "3 APGD-CE through 2 steps")
    along = next(line.score for line in whole.lines if line.label == "3 APGD-CE, mean gradient of 2 steps")

    assert (clean.count, clean.noise_samples) == (6, tiny.reevaluations)
    assert (bpda.count, bpda.noise_samples) == (6, tiny.noise_samples)
    assert along.count == 3  # the expensive share: half of them
    assert clean.worst <= clean.mean
    assert 0 < clean.steps_most <= 6


def test_the_images_kept_for_the_report_are_those_answered_right_least_often(model, dataset, tiny):
    with torch.no_grad():
        answers = model(dataset.floats(0, 8)).argmax(1)
    odd = torch.arange(8) % 2
    known = replace(dataset, labels=(answers + odd) % 10)  # the odd ones are answered wrong

    clean = evaluate_adaptive(Target.plain(model), known, budget=tiny, rows=[0]).line(0, sanity.CLEAN)

    judged = known.subset(6)  # what the budget takes, in two batches
    with torch.no_grad():
        right = model(judged.floats(0, 6)).argmax(1) == judged.labels
    assert 0 < right.sum() < 6
    assert clean.places == right.int().argsort(stable=True)[:4].tolist()
    assert torch.equal(clean.examples, judged.images[clean.places].float() / 255)


@pytest.mark.parametrize("after", [1, 9, 30])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(defense, dataset, tiny, whole, tmp_path, after):
    target, done = Target.defended(defense), []

    def stop(progress):
        done.append(progress)
        if len(done) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_adaptive(target, dataset, budget=tiny, surrogate=defense.model, folder=tmp_path, progress=stop)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "units").iterdir()}
    found = evaluate_adaptive(target, dataset, budget=tiny, surrogate=defense.model, folder=tmp_path, resume=True)

    assert len(before) == after
    assert {name: (tmp_path / "units" / name).stat().st_mtime_ns for name in before} == before
    assert told(found) == told(whole)


def test_progress_ends_at_the_whole(defense, dataset, tiny):
    seen = []

    evaluate_adaptive(Target.plain(defense.model), dataset, budget=tiny, rows=[0], progress=seen.append)

    assert seen[-1].share == 1
    assert [p.share for p in seen] == sorted(p.share for p in seen)


def test_a_folder_of_other_settings_or_of_other_work_is_refused(model, dataset, tiny, tmp_path):
    evaluate_adaptive(Target.plain(model), dataset, budget=tiny, rows=[0], folder=tmp_path)

    with pytest.raises(ValueError, match="holds an evaluation already"):
        evaluate_adaptive(Target.plain(model), dataset, budget=tiny, rows=[0], folder=tmp_path)
    with pytest.raises(ValueError, match="seed was 0, got 1"):
        evaluate_adaptive(Target.plain(model), dataset, budget=tiny, rows=[0], seed=1, folder=tmp_path, resume=True)
    other = replace(dataset, images=dataset.images + 1)
    with pytest.raises(ValueError, match="images_sha256"):
        evaluate_adaptive(Target.plain(model), other, budget=tiny, rows=[0], folder=tmp_path, resume=True)


def test_a_damaged_unit_is_refused_by_name(model, dataset, tiny, tmp_path):
    evaluate_adaptive(Target.plain(model), dataset, budget=tiny, rows=[0], folder=tmp_path)
    unit = next((tmp_path / "units").glob("0-clean-*"))
    unit.write_bytes(unit.read_bytes()[:-7])

    with pytest.raises(ValueError, match=r"0-clean-00000\.safetensors is not a whole unit"):
        evaluate_adaptive(Target.plain(model), dataset, budget=tiny, rows=[0], folder=tmp_path, resume=True)


def test_an_afa_model_is_attacked_whole_and_in_parts_and_by_its_weight(model, dataset, tiny):
    afa = convert_to_afa(convert_to_multi_bn(copy.deepcopy(model), 2)).eval()

    found = evaluate_adaptive(Target.plain(afa), dataset, budget=tiny)

    rows = names(found)
    assert {"1 AutoAttack standard", "1 AutoAttack standard, blend (W0 = 0.5)"} <= rows
    assert sum("BCE(W0)" in name for name in rows) == 7
    assert {"3 APGD-CE", "3 C&W margin, APGD", "3 APGD-DLR, targeted"} <= rows
    assert {case.row for case in found.not_run} == {2, 4, 7, 8}
    assert found.line(1, "AutoAttack standard").case.counts


def test_what_only_answers_is_attacked_by_black_boxes(model, dataset, tiny):
    def answer(images, ids):
        with torch.no_grad():
            logits = model(images)
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return Answers(logits, nothing, nothing.bool())

    found = evaluate_adaptive(Target.opaque(answer, random=False), dataset, budget=tiny, surrogate=model)

    assert {line.case.row for line in found.lines} == {0, 2, 6}
    assert {case.row for case in found.not_run} == {0, 1, 3, 4, 5, 7, 8}


def test_the_work_on_what_only_answers_is_not_taken_for_another_s(dataset, tiny, tmp_path):
    def answer(images, ids):
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return Answers(torch.zeros(len(images), 10), nothing, nothing.bool())

    first, second = (Target.opaque(answer, random=False, identity=name) for name in "ab")
    evaluate_adaptive(first, dataset, budget=tiny, rows=[0], folder=tmp_path)

    evaluate_adaptive(first, dataset, budget=tiny, rows=[0], folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="model_sha256 was a, got b"):
        evaluate_adaptive(second, dataset, budget=tiny, rows=[0], folder=tmp_path, resume=True)


def of_classes(count):
    torch.manual_seed(0)
    return build(parse_architecture("wrn-10-1", num_classes=count, in_channels=1)).eval()


@pytest.fixture(scope="module")
def of_two_classes(dataset):
    return replace(dataset, labels=torch.arange(8) % 2, classes=("a", "b"))


def test_a_defended_model_of_two_classes_is_attacked_but_by_losses_that_need_more(of_two_classes, tiny):
    defense = fastdef.ActiveDefense(of_classes(2), beta=3.0, max_steps=3, compile=False)

    found = evaluate_adaptive(Target.defended(defense), of_two_classes, budget=tiny, surrogate=defense.model)

    assert {line.case.row for line in found.lines} == {*range(7), 8}
    assert [(case.row, case.reason) for case in found.not_run] == [
        (3, "its loss needs four classes, and there are 2"),
        (7, "its DLR loss needs three classes, and there are 2"),
    ]


def test_a_model_of_one_class_is_refused(dataset, tiny):
    ones = replace(dataset, labels=torch.zeros(8, dtype=torch.int64), classes=("a",))

    with pytest.raises(ValueError, match="at least two classes, got 1"):
        evaluate_adaptive(Target.plain(of_classes(1)), ones, budget=tiny)


class Noisy(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images + 0.1 * torch.randn_like(images))


def test_a_module_that_draws_inside_is_attacked_as_random_and_resumes_too(model, dataset, tiny, tmp_path):
    target = Target.plain(Noisy(model).eval(), random=True)

    found = evaluate_adaptive(target, dataset, budget=tiny, rows=[0, 6, 7], folder=tmp_path)
    next((tmp_path / "units").glob("7-*re-evaluated*")).unlink()
    next((tmp_path / "units").glob("0-random*")).unlink()
    again = evaluate_adaptive(target, dataset, budget=tiny, rows=[0, 6, 7], folder=tmp_path, resume=True)

    assert found.line(0, sanity.CLEAN).score.noise_samples == tiny.reevaluations
    assert found.line(7, "AutoAttack rand, re-evaluated") is not None
    assert told(again) == told(found)


def test_a_random_module_that_does_not_say_so_is_refused(model, dataset, tiny):
    with pytest.raises(ValueError, match="says whether it is random, got one that is"):
        evaluate_adaptive(Target.plain(Noisy(model).eval()), dataset, budget=tiny, rows=[0])


@pytest.mark.gpu
def test_it_runs_on_a_gpu(model, dataset, tiny):
    pytest.importorskip("pyautoattack", reason="needs pyautoattack")
    moved = copy.deepcopy(model).cuda()
    defense = fastdef.ActiveDefense(moved, beta=3.0, max_steps=6)
    defense.calibrate(dataset.floats(0, 8).cuda(), ratio=1.0)

    found = evaluate_adaptive(Target.defended(defense), dataset.to("cuda"), budget=tiny, surrogate=moved)

    assert {line.case.row for line in found.lines} == set(range(9))


def test_rows_that_take_another_row_s_images_say_so(defense, dataset, tiny):
    found = evaluate_adaptive(Target.defended(defense), dataset, budget=tiny, rows=[2])

    assert [case.name for case in found.not_run] == ["AutoAttack on the same", "a surrogate's images"]


@pytest.mark.parametrize("name", ["rounding", "noise"])
def test_a_broken_defense_falls_to_what_the_static_model_is_worth(shipped, fashion, tiny, name):
    """Rounding hides every gradient, noise blurs them; neither is worth anything to an attacker who knows of it."""
    purify = {
        "rounding": lambda images, ids: (31 * images).round() / 31,
        "noise": lambda images, ids: (
            images + uniform_noise(ids, torch.zeros_like(ids), images.shape[1:], seed=1, sigma=0.03)
        ),
    }[name]
    budget = replace(tiny, images=32, iterations=40, eot=4, patience=5, batch=32, noise_samples=5, queries=4)

    found = evaluate_adaptive(
        Target.purified(shipped, purify, random=name == "noise"), fashion, budget=budget, rows=[0, 1, 2, 3]
    )

    clean, static = found.line(0, sanity.CLEAN), found.line(1, "AutoAttack standard, without the defense")
    assert clean.score.mean > 0.8
    assert found.headline.score.judgement <= static.score.mean + 0.03
    assert found.passed


def test_masked_gradients_fail_the_suite(shipped, fashion, tiny):
    """Rounding inside an unknown module: no gradient gets through, no planted example is found, and it says so."""

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = shipped

        def forward(self, images):
            return self.model((31 * images).round() / 31)

    budget = replace(tiny, images=8, iterations=10)

    found = evaluate_adaptive(Target.plain(Masked().eval()), fashion, budget=budget, rows=[0])

    failed = {check.name for check in found.checks if not check.passed}
    assert {"planted adversarial examples are found", "nothing stands at eps 64/255"} <= failed
    assert not found.passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [9]}, "rows from 0 to 8, got 8 and \\[9\\]"),
        ({"eps": 8}, "evaluate_adaptive needs eps in pixel units, such as 8/255, from 0 to 1, got 8"),
        ({"eps": -8 / 255}, "from 0 to 1, got -0.03"),
        ({"dataset": Dataset(torch.zeros(0, 1, 12, 12).byte(), torch.zeros(0).long(), ("a",), "x", "y")}, "images"),
    ],
)
def test_bad_input_is_refused(model, dataset, tiny, change, message):
    arguments = {"dataset": dataset, "budget": tiny, **change}

    with pytest.raises(ValueError, match=message):
        evaluate_adaptive(Target.plain(model), **arguments)


@pytest.mark.parametrize("rows", [[0], [1], [7]])
def test_a_defense_as_a_plain_model_is_refused(defense, dataset, tiny, rows):
    with pytest.raises(ValueError, match=r"need a differentiable model; for a defense see Target\.defended"):
        evaluate_adaptive(Target.plain(defense, random=True), dataset, budget=tiny, rows=rows)


def test_a_defense_as_surrogate_is_refused(model, defense, dataset, tiny):
    with pytest.raises(ValueError, match="need a differentiable model"):
        evaluate_adaptive(Target.plain(model), dataset, budget=tiny, rows=[0], surrogate=defense)


def test_a_function_is_no_classifier(model):
    with pytest.raises(ValueError, match=r"Target\.plain needs a torch\.nn\.Module, got function"):
        Target.plain(lambda images: model(images))
    with pytest.raises(ValueError, match=r"Target\.purified needs a torch\.nn\.Module, got function"):
        Target.purified(lambda images: model(images), lambda images, ids: images, random=False)


def test_a_model_in_training_mode_is_refused(dataset, tiny):
    with pytest.raises(ValueError, match="eval mode"):
        evaluate_adaptive(Target.plain(torch.nn.Linear(1, 1)), dataset, budget=tiny)


@pytest.fixture(scope="module")
def six():
    """Six images for the linear model, whose labels are 0 and 1."""
    pixels = torch.randint(0, 256, (6, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset(pixels, torch.arange(6) % 2, tuple("abcd"), "made", "test")


@pytest.fixture(scope="module")
def least(tiny):
    """The tiny budget without curves."""
    return replace(tiny, curve_eps=(), curve_iterations=())


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


def test_a_unit_s_seed_stays_and_is_another_for_every_unit():
    """What was begun is gone on with by the same draws, in every version."""
    units = [(0, "0-clean", 0), (1, "0-clean", 0), (0, "0-clean", 1), (0, "3-APGD-CE", 0)]

    assert [suite._seed(*unit) for unit in units] == [3237851147, 1034825991, 1462108194, 2249666658]


def test_torch_s_generator_is_the_unit_s_and_then_as_it_was(batch):
    torch.manual_seed(1)
    before = torch.get_rng_state()

    with suite._seeded(batch):
        found = torch.rand(3)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(batch.seed)))


def test_the_hardest_are_the_four_that_are_answered_right_least_often_and_of_equal_ones_the_first():
    right = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 1], [0, 0], [1, 0]]).bool()

    assert suite._hardest(right).tolist() == [1, 4, 2, 3]
    assert suite._hardest(right[:2]).tolist() == [1, 0]


@dataclass(frozen=True)
class Shift(Attack):
    """Adds a number to the images, and notes the batches."""

    by: float
    seen: list

    def __call__(self, batch):
        self.seen.append(batch)
        return [batch.images + self.by]


class Memory:
    """A journal in memory."""

    def __init__(self):
        self.units = {}

    def read(self, key, number):
        return self.units.get((key, number))

    def write(self, key, number, unit):
        self.units[key, number] = unit


def judge(asked, of=None):
    """Whoever evaluates: the n-th of a batch is right under n of its noise samples; notes what it was asked."""

    def evaluate(batch, images, noise_samples, stream):
        asked.append((images, noise_samples, stream))
        right = torch.arange(noise_samples) < torch.arange(len(images))[:, None]
        right = right[:of]
        steps = (batch.ids[:of, None] + torch.zeros_like(right)).int()
        return Predictions(right, steps, right, torch.ones(len(right)), torch.ones_like(right))

    return evaluate


def worker(six, tiny, *cases, journal=None, progress=lambda progress: None):
    return suite._Worker(journal or Memory(), six, tiny, 9, cases, progress)


def shifted(asked, *, seen=None, name="x", of=None, images=6, **more):
    craft = Shift(None, 0.5, [] if seen is None else seen)
    return AttackCase(3, name, craft, judge(asked, of), 0.1, images, 3, **more)


def test_a_unit_s_batch_has_its_images_labels_places_and_seed(six, tiny):
    seen = []
    case = shifted([], seen=seen)

    worker(six, tiny, case).work()

    assert [batch.ids.tolist() for batch in seen] == [[0, 1, 2, 3], [4, 5]]
    for number, batch in enumerate(seen):
        start, stop = int(batch.ids[0]), int(batch.ids[-1]) + 1
        assert torch.equal(batch.images, six.floats(start, stop))
        assert torch.equal(batch.labels, six.labels[start:stop])
        assert batch.seed == suite._seed(9, case.key, number)


def test_what_was_attacked_is_judged_by_the_evaluation_s_draws(six, tiny):
    asked = []

    worker(six, tiny, shifted(asked)).work()

    assert [(count, stream) for _, count, stream in asked] == [(3, SeedStream.EVALUATION)] * 2
    assert torch.equal(torch.cat([images for images, _, _ in asked]), six.floats(0, 6) + 0.5)


def test_of_several_candidates_one_is_chosen_by_the_case_s_noise_samples(six, tiny):
    asked = []
    case = shifted(asked, images=4)
    twice = replace(case, craft=Kept(None, case.key))
    journal = Memory()
    made = torch.cat([six.floats(0, 4)] * 2)
    nothing = torch.zeros(0)
    journal.units[case.key, 0] = Unit(None, made, nothing, nothing, 0.0, 0.0)

    worker(six, tiny, twice, journal=journal)._work(twice, 0, 0, 4)

    assert [(count, stream) for _, count, stream in asked] == [(3, SeedStream.CHOICE)] * 2 + [
        (3, SeedStream.EVALUATION)
    ]


def test_an_attack_and_its_evaluation_happen_in_the_case_s_view(six, tiny):
    log = []

    @contextmanager
    def view():
        log.append("in")
        yield
        log.append("out")

    class Logged(Shift):
        def __call__(self, batch):
            log.append(f"attack {torch.initial_seed() == batch.seed}")
            return super().__call__(batch)

    def evaluate(*arguments):
        log.append("evaluate")
        return judge([])(*arguments)

    case = AttackCase(3, "x", Logged(None, 0.5, []), evaluate, 0.1, 4, 3, view=view)

    worker(six, tiny, case).work()

    assert log == ["in", "attack True", "evaluate", "out"]


def test_a_unit_keeps_images_where_another_case_needs_them_and_the_hardest_always(six, tiny):
    kept, not_kept = (shifted([], keeps=keeps) for keeps in (True, False))

    whole, none = (worker(six, tiny, case)._work(case, 0, 0, 6) for case in (kept, not_kept))

    attacked = six.floats(0, 6) + 0.5
    assert torch.equal(whole.images, attacked)
    assert none.images.shape == (0, 1, SIDE, SIDE)
    for unit in (whole, none):
        assert unit.places.tolist() == [0, 1, 2, 3]
        assert torch.equal(unit.examples, attacked[:4])


def test_of_many_images_the_hardest_are_kept_as_well(six, tiny):
    many = replace(six, images=six.images.repeat(50, 1, 1, 1), labels=six.labels.repeat(50))
    case = shifted([], images=300)

    assert worker(many, tiny, case)._work(case, 0, 0, 300).places.tolist() == [0, 1, 2, 3]


def test_of_images_that_were_not_all_evaluated_none_is_the_hardest(six, tiny):
    case = shifted([], of=3)

    unit = worker(six, tiny, case)._work(case, 0, 0, 6)

    assert len(unit.places) == len(unit.examples) == 0
    assert len(unit.predictions.right) == 3


def test_attack_and_evaluation_are_timed(monkeypatch, six, tiny):
    case = shifted([])
    clock = iter([10.0, 13.0, 18.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    unit = worker(six, tiny, case)._work(case, 0, 0, 6)

    assert (unit.crafting, unit.evaluating) == (3.0, 5.0)


def test_another_case_s_images_are_those_of_the_same_batch(six, tiny):
    asked, journal = [], Memory()
    first = shifted([], name="first", keeps=True)
    second = AttackCase(3, "second", Kept(None, first.key), judge(asked), 0.1, 6, 3, needs=first.key)

    worker(six, tiny, first, second, journal=journal).work()

    assert torch.equal(torch.cat([images for images, _, _ in asked]), six.floats(0, 6) + 0.5)
    del journal.units[first.key, 1]
    del journal.units[second.key, 1]
    with pytest.raises(ValueError, match=f"a unit of {first.key} has gone from the folder: evaluate into another one"):
        worker(six, tiny, first, second, journal=journal)._work(second, 1, 4, 6)


def test_units_that_are_done_are_not_done_again(six, tiny):
    seen, progress, journal = [], [], Memory()
    case = shifted([], seen=seen)
    worker(six, tiny, case, journal=journal).work()
    del journal.units[case.key, 0]
    seen.clear()

    worker(six, tiny, case, journal=journal, progress=progress.append).work()

    assert [batch.ids.tolist() for batch in seen] == [[0, 1, 2, 3]]
    assert progress == [Progress("3 x", 4, 6, 4 / 6), Progress("3 x", 6, 6, 1.0)]


def test_a_line_is_of_all_units(six, tiny):
    case, journal = shifted([], images=100), Memory()
    one = worker(six, tiny, case, journal=journal)
    one.work()
    journal.units = {
        place: replace(unit, crafting=6.0 + place[1], evaluating=12.0 + place[1])
        for place, unit in journal.units.items()
    }

    line = one.line(case)

    assert line.case is case
    assert (line.score.count, line.score.noise_samples) == (6, 3)
    assert line.score.mean == pytest.approx((0 + 1 + 2 + 3 + 0 + 1) / 18)
    assert (line.crafting, line.evaluating) == (13 / 6, 25 / 6)
    assert line.places == [0, 4, 1, 5]
    assert torch.equal(line.examples, (six.floats(0, 6) + 0.5)[line.places])
    assert line.steps == [place for place in range(6) for _ in range(3)]


def test_a_line_of_which_nothing_could_be_evaluated_has_no_score(six, tiny):
    case = shifted([], of=0)
    one = worker(six, tiny, case)
    one.work()

    line = one.line(case)

    assert line.score is None
    assert line.places == line.steps == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_units_and_those_that_take_another_s_images_go_with_them(monkeypatch, six, tiny, ranks):
    first = shifted([], name="first", keeps=True)
    other = shifted([], name="other", images=2)
    second = AttackCase(3, "second", Kept(None, first.key), judge([]), 0.1, 6, 3, needs=first.key)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    done = {}
    shares = []

    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        journal, progress = Memory(), []
        worker(six, replace(tiny, batch=2), other, first, second, journal=journal, progress=progress.append).work()
        shares += progress[-1:]
        for unit in journal.units:
            assert unit not in done
            done[unit] = rank

    assert len(done) == 1 + 3 + 3
    assert {share.share for share in shares} == {1.0}
    assert [done[first.key, number] for number in range(3)] == [(1 + number) % ranks for number in range(3)]
    assert all(done[second.key, number] == done[first.key, number] for number in range(3))
    assert done[other.key, 0] == 0
