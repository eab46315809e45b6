import copy
from dataclasses import replace

import pytest
import torch

import fastdef
from fastdef.data import Dataset
from fastdef.defense.noise import uniform_noise
from fastdef.evaluation.adaptive import Answers, Target, evaluate_adaptive
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.nn import build, convert_to_afa, convert_to_multi_bn, parse_architecture
from tests.evaluation.adaptive.lines import names, told


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
