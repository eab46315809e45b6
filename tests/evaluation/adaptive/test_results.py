"""The suite's checks on itself fail where they should, and pass where they may."""

import pytest
import torch

from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, Plan, Predictions
from fastdef.evaluation.adaptive.budget import SMOKE
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.results import AdaptiveResults, Line
from fastdef.evaluation.adaptive.rows import planted, sanity
from fastdef.evaluation.adaptive.rows.bpda import ESTIMATED
from fastdef.evaluation.adaptive.score import Score
from fastdef.evaluation.adaptive.target import Target

NOISE, RISING = "attacks do more than random noise", "the loss rises with the iterations"
HUGE, PLANTED = "nothing stands at eps 64/255", "planted adversarial examples are found"
MASKED = "gradients do as much as answers alone"
ALIGNED = "gradients are those of what is deployed"


def line(row, name, right, of=20, *, loss=1.0, counts=False):
    """A line of which ``right`` of 20 images are answered right."""
    answers = (torch.arange(of) < right)[:, None]
    none = torch.zeros_like(answers)
    predictions = Predictions(answers, none.int(), none, torch.full((of,), loss), ~none)
    case = AttackCase(row, name, sanity.Clean(None), None, 8 / 255, of, 1, counts=counts)
    return Line(case, Score.of(predictions), 0.0, 0.0, torch.zeros(0), [], [0])


def passed(*lines, alignment=None):
    return {check.name: check.passed for check in AdaptiveResults(list(lines), [], {}, False, alignment).checks}


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
