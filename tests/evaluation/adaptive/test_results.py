"""The suite's checks on itself fail where they should, and pass where they may."""

from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.budget import SMOKE
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.results import AdaptiveResults, Line
from fastdef.evaluation.adaptive.rows import planted, sanity
from fastdef.evaluation.adaptive.rows.bpda import ESTIMATED
from fastdef.evaluation.adaptive.rows.static import STATIC
from fastdef.evaluation.adaptive.rows.transfer import PGD
from fastdef.evaluation.adaptive.target import Target
from tests.evaluation.adaptive.lines import line, results, scored, scoreless

NOISE, RISING = "attacks do more than random noise", "the loss rises with the iterations"
HUGE, PLANTED = "nothing stands at eps 64/255", "planted adversarial examples are found"
MASKED = "gradients do as much as answers alone"
ALIGNED = "gradients are those of what is deployed"
ANSWERED = "every answer is a number"


def passed(*lines, alignment=None):
    return {check.name: check.passed for check in results(*lines, alignment=alignment).checks}


def detail(*lines, alignment=None):
    (check,) = results(*lines, alignment=alignment).checks
    return check.detail


@pytest.mark.parametrize(("attack", "noise", "holds"), [(10, 11, True), (10, 10, True), (11, 10, False)])
def test_an_attack_that_does_less_than_noise_fails_the_check(attack, noise, holds):
    found = passed(line(3, "APGD-CE", attack, counts=True), line(0, sanity.NOISE, noise))

    assert found == {NOISE: holds}


@pytest.mark.parametrize(
    ("losses", "holds"),
    [([1.0, 2.0, 3.0], True), ([1.0, 2.0, 1.95], True), ([1.0, 2.0, 1.5], False), ([2.0, 1.0], False)],
)
def test_a_loss_that_falls_with_the_iterations_fails_the_check(losses, holds):
    curve = [line(0, sanity.iterations_name(3**k), 5, loss=loss) for k, loss in enumerate(losses)]

    assert passed(*curve) == {RISING: holds}


@pytest.mark.parametrize(("right", "holds"), [(0, True), (1, True), (2, False), (20, False)])
def test_what_stands_at_a_huge_radius_fails_the_check(right, holds):
    assert passed(line(0, sanity.HUGE, right)) == {HUGE: holds}


@pytest.mark.parametrize(("missed", "holds"), [(0, True), (2, True), (3, False)])
def test_planted_examples_that_are_missed_fail_the_check(missed, holds):
    assert passed(line(0, planted.PLANTED, missed)) == {PLANTED: holds}


@pytest.mark.parametrize(("value", "holds"), [(0.9, True), (0.1, False), (-1.0, False), (0.0, False)])
def test_a_gradient_of_something_else_fails_the_check(value, holds):
    estimated = line(3, ESTIMATED, 0)

    assert passed(estimated, alignment=value) == {ALIGNED: holds}
    (check,) = AdaptiveResults([estimated], [], {}, False, value).checks
    assert ("estimated gradient signs" in check.detail) == (not holds)


@pytest.mark.parametrize(("gradient", "answers", "holds"), [(20, 1, False), (6, 1, True), (1, 6, True), (0, 0, True)])
def test_a_black_box_that_does_clearly_more_than_gradients_fails_the_check(gradient, answers, holds):
    found = passed(line(3, "APGD-CE", gradient, counts=True), line(6, "Square", answers, counts=True))

    assert found == {MASKED: holds}
    assert passed(line(3, "APGD-CE", gradient, counts=True), line(3, ESTIMATED, answers, counts=True)) == found


class Flat(torch.nn.Module):
    """Answers the same to everything, so that nothing can be planted."""

    def forward(self, x):
        return 0 * x.flatten(1)[:, :4] + torch.tensor([3.0, 2.0, 1.0, 0.0])


def test_planted_examples_that_do_not_hold_are_not_judged():
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.zeros(6, dtype=torch.int64), torch.arange(6), 1, lambda key: images)
    target = Target.plain(Flat().eval())
    case = planted.planted(Plan(target, target.classifier, SMOKE, 8 / 255, 6, 4))

    predictions = case.evaluate(batch, images, 1, SeedStream.EVALUATION)

    assert len(predictions.right) == 0


def test_where_none_could_be_planted_the_check_fails():
    case = AttackCase(0, planted.PLANTED, sanity.Clean(None), None, 8 / 255, 6, 1, counts=False)

    assert passed(Line(case, None, 0.0, 0.0, torch.zeros(0), [], [0])) == {PLANTED: False}


def test_a_line_s_json_has_eps_in_255ths_and_the_seconds_of_one_answer():
    case = AttackCase(3, "x", sanity.Clean(None), None, 8 / 255, 20, 5, counts=True)
    score = line(3, "x", 5).score
    made = Line(case, score, 0.5, 2.0, torch.zeros(0), [], [0])

    told = made.to_json()

    assert (told["row"], told["name"], told["eps"], told["counts"], told["settings"]) == (3, "x", 8, True, {})
    assert (told["seconds_to_attack_an_image"], told["seconds_to_answer_an_image"]) == (0.5, 0.4)
    assert told | score.to_json() == told
    assert replace(made, case=replace(case, eps=0.01234567)).to_json()["eps"] == 3.148146
    assert "mean" not in replace(made, score=None).to_json()


def test_the_headline_is_the_lowest_selection_of_the_lines_that_count():
    high, low = line(3, "high", 9, counts=True), line(3, "low", 9, counts=True)
    high = scored(high, selection=0.9, judgement=0.1, mean=0.1)
    low = scored(low, selection=0.2, judgement=0.8, mean=0.8)
    others = [line(1, "aside", 0), scoreless(3, "none", counts=True)]

    found = results(*others, high, low)

    assert found.headline is low
    assert results(*others).headline is None


def test_a_line_is_found_by_row_and_name_where_it_has_a_score():
    one, other = line(3, "a", 1), line(3, "b", 2)

    found = results(scoreless(2, "a"), one, other, line(4, "b", 3))

    assert found.line(3, "b") is other
    assert found.line(4, "b") is found.lines[3]
    assert found.line(3, "a") is one
    assert found.line(2, "a") is found.line(2, "b") is None


def test_names_are_the_same_where_their_letters_are():
    found = line(0, "".join(planted.PLANTED), 20)
    estimated = line(3, "".join(ESTIMATED), 0, counts=True)

    assert results(found).line(0, planted.PLANTED) is found
    assert passed(found) == {PLANTED: False}
    assert passed(estimated) == {}
    assert passed(estimated, line(3, "x", 20, counts=True)) == {MASKED: False}


def interval(right, of=20):
    return "95 % interval {:.1%} to {:.1%}".format(*Accuracy(right, of).interval)


def test_the_sentence_says_what_the_strongest_attack_leaves_and_what_others_do():
    found = results(
        line(0, sanity.CLEAN, 18),
        line(2, PGD, 15),
        line(1, STATIC, 2),
        line(4, "APGD", 5, counts=True),
    )

    assert found.sentence == (
        f"The strongest attack, row 4's APGD, leaves an accuracy of 25.0% within eps 8/255 (20 images, {interval(5)})."
        " Clean images: 90.0%. A static attack leaves 75.0%. Without the defense AutoAttack leaves 10.0%."
    )


def test_the_sentence_is_of_the_judgement_and_says_so_where_there_are_noise_samples():
    several = scored(line(4, "APGD", 5, counts=True), noise_samples=2, selection=0.1, judgement=0.5)

    assert results(several).sentence == (
        f"The strongest attack, row 4's APGD, leaves an accuracy of 50.0% within eps 8/255 (20 images, {interval(10)})."
        " It was chosen by half of the noise samples and judged by the others."
    )


def test_without_an_attack_that_counts_the_sentence_says_that_nothing_can_be_said():
    found = results(line(0, sanity.CLEAN, 18), scoreless(3, "none", counts=True))

    assert found.sentence == "No attack within eps was run: nothing can be said of what this is worth."


@pytest.mark.parametrize(
    ("lines", "alignment", "text"),
    [
        ([line(0, sanity.HUGE, 3)], None, "15.0% answered right, at most 5% may be"),
        (
            [line(3, "x", 5, counts=True), line(0, sanity.NOISE, 15)],
            None,
            "noise leaves 75.0%, the strongest attack 25.0%",
        ),
        ([line(0, sanity.iterations_name(k), 5, loss=k / 8) for k in (1, 3)], None, "0.12, 0.38"),
        ([line(0, planted.PLANTED, 3)], None, "85.0% of 20 found, 90% needed"),
        ([scoreless(0, planted.PLANTED)], None, "none could be planted"),
        ([], 0.9, "correlation 0.90 with finite differences, 0.4 needed"),
        ([line(3, ESTIMATED, 5)], 0.4, "correlation 0.40 with finite differences, 0.4 needed"),
        (
            [line(3, ESTIMATED, 5)],
            0.39,
            "correlation 0.39 with finite differences, 0.4 needed; 3 estimated gradient signs attack without it",
        ),
        (
            [line(3, "x", 5, counts=True), line(6, "RayS", 15, counts=True)],
            None,
            "6 RayS leaves 75.0%, 3 x 25.0%",
        ),
    ],
)
def test_a_check_says_the_numbers_that_it_hangs_on(lines, alignment, text):
    assert detail(*lines, alignment=alignment) == text


def test_the_alignment_that_is_needed_passes():
    assert passed(alignment=0.4) == {ALIGNED: True}


def test_an_answer_that_is_no_number_fails_the_check_which_names_the_line_that_has_most():
    lines = [
        scored(line(3, name, 5), unanswered=count) for name, count in (("few", 1), ("most", 7), ("some", 3), ("no", 0))
    ]

    assert passed(*lines) == {ANSWERED: False}
    assert detail(*lines) == "7 are NaN or infinite under 3 most: not right"
    assert passed(lines[0]) == {ANSWERED: False}
    assert passed(lines[3], scoreless(3, "none")) == {}


def test_one_point_of_the_curve_is_no_rise_and_lines_without_a_score_are_no_points():
    names = [sanity.iterations_name(k) for k in (1, 3)]

    assert passed(line(0, names[0], 5), scoreless(0, names[1]), line(0, sanity.eps_name(4), 5, loss=0.1)) == {}


@pytest.mark.parametrize(("before", "after", "holds"), [(8.0, 7.61, True), (8.0, 7.59, False), (0.0, 0.0, True)])
def test_a_loss_may_stay_or_fall_by_a_twentieth(before, after, holds):
    curve = [line(0, sanity.iterations_name(k), 5, loss=loss) for k, loss in ((1, before), (3, after))]

    assert passed(*curve) == {RISING: holds}


@pytest.mark.parametrize("other", [scoreless(0, sanity.NOISE), line(0, sanity.CLEAN, 20)])
def test_without_noise_that_was_evaluated_there_is_no_check_against_it(other):
    assert passed(line(3, "x", 5, counts=True), other) == {}


def test_without_an_attack_that_counts_noise_is_not_held_against_it():
    assert passed(line(0, sanity.NOISE, 5), line(3, "x", 5)) == {}


@pytest.mark.parametrize("name", [planted.PLANTED, sanity.HUGE])
def test_checks_of_row_0_take_no_other_row_s_line(name):
    assert passed(line(1, name, 20), line(-1, name, 20), line(0, "another", 20)) == {}


@pytest.mark.parametrize("row", [3, 4, 5, 8])
def test_rows_by_gradient_are_held_against_black_boxes(row):
    assert passed(line(row, "x", 20, counts=True), line(6, "RayS", 0, counts=True)) == {MASKED: False}


@pytest.mark.parametrize("row", [0, 1, 2, 7])
def test_other_rows_are_neither_black_boxes_nor_by_gradient(row):
    other = line(row, "x", 10, counts=True)

    assert passed(other, line(6, "RayS", 0, counts=True)) == {}
    assert passed(other, line(3, "x", 10, counts=True)) == {}


def test_lines_that_do_not_count_say_nothing_of_masking():
    assert passed(line(3, "x", 20), line(6, "RayS", 0, counts=True)) == {}
    assert passed(line(3, "x", 20, counts=True), scoreless(6, "RayS", counts=True)) == {}


def test_the_lowest_of_each_kind_is_held_against_the_other_and_intervals_may_touch():
    weak, strong = line(3, "weak", 20, counts=True), line(5, "strong", 6, counts=True)
    blunt, sharp = line(6, "blunt", 19, counts=True), line(6, "sharp", 1, counts=True)

    assert detail(weak, strong, blunt, sharp) == "6 sharp leaves 5.0%, 5 strong 30.0%"
    assert passed(weak, strong, blunt, sharp) == {MASKED: True}
    low, high = (scored(one, interval=(0.2, 0.2)) for one in (sharp, strong))
    assert passed(low, high) == {MASKED: True}


def test_it_passed_where_every_check_holds():
    good, bad = line(0, sanity.HUGE, 0), line(0, planted.PLANTED, 20)

    assert results(good).passed
    assert not results(good, bad).passed
    assert results().passed


SETTINGS = {"seed": 3, "device": "cpu", "defense": None}


@pytest.mark.parametrize(("defense", "dtype"), [(None, "float32"), ({"dtype": "bfloat16"}, "bfloat16")])
def test_lines_say_with_which_seed_device_and_dtype_they_were_made(defense, dtype):
    found = AdaptiveResults([line(3, "x", 5)], [], {**SETTINGS, "defense": defense}, False)

    (told,) = found.lines_json()

    assert (told["seed"], told["device"], told["dtype"]) == (3, "cpu", dtype)
    assert told["name"] == "x"


def test_the_json_has_all():
    lines = [line(3, "x", 5, counts=True), line(0, sanity.HUGE, 10)]
    found = AdaptiveResults(lines, [NotRun(4, "y", "why")], SETTINGS, True, 0.9)

    assert found.to_json() == {
        "headline": 0.25,
        "headline_of": "3 x",
        "sentence": found.sentence,
        "passed": False,
        "alignment": 0.9,
        "checks": [
            {"name": HUGE, "passed": False, "detail": "50.0% answered right, at most 5% may be"},
            {"name": ALIGNED, "passed": True, "detail": "correlation 0.90 with finite differences, 0.4 needed"},
        ],
        "lines": found.lines_json(),
        "not_run": [{"row": 4, "name": "y", "reason": "why"}],
        "settings": SETTINGS,
    }


def test_the_json_of_no_attack_has_no_headline():
    told = AdaptiveResults([line(0, sanity.CLEAN, 5)], [], SETTINGS, False).to_json()

    assert told["headline"] is told["headline_of"] is told["alignment"] is None
