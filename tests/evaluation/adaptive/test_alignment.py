"""The correlation of an attack's gradient with what is deployed, on a linear model, where it is known."""

from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.alignment import ALIGNED, alignment, log_odds, other_classes
from fastdef.evaluation.adaptive.attack_case import Plan
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from tests.evaluation.adaptive.linear import CLASSES, LINEAR, SIDE

EPS, IMAGES = 0.1, 3
STEP = EPS / 2


class Asked(torch.nn.Module):
    """The linear model, which keeps every point that it was asked, those that are differentiated apart."""

    def __init__(self, spoil=lambda gradient: gradient):
        super().__init__()
        self.spoil = spoil
        self.differentiated, self.answered = [], []

    def forward(self, x):
        kept = self.differentiated if x.requires_grad else self.answered
        kept.append(x.detach().clone())
        if x.requires_grad:
            x = x.clone()
            x.register_hook(self.spoil)
        return LINEAR(x)


def aligned(model, images, tiny, *, seed=0):
    target = Target.plain(model)
    plan = Plan(target, model, tiny, EPS, len(images), CLASSES)
    return alignment(plan, images, torch.zeros(len(images), dtype=torch.int64), seed=seed)


@pytest.fixture
def images():
    return torch.full((IMAGES, 1, SIDE, SIDE), 0.5)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda gradient: gradient, 1.0),
        (lambda gradient: -3 * gradient, -1.0),
        (torch.zeros_like, 0.0),
        (lambda gradient: torch.full_like(gradient, torch.nan), 0.0),
        (lambda gradient: gradient * torch.tensor([1.0, 0.0, 0.0]).view(-1, 1, 1, 1), 1 / 3),  # the mean over images
    ],
    ids=["true", "negated", "zero", "NaN", "one image's"],
)
def test_the_correlation_is_known_where_the_model_is_linear(images, tiny, spoil, expected):
    assert aligned(Asked(spoil), images, tiny) == pytest.approx(expected, abs=1e-3)


def test_the_true_gradient_is_taken_for_the_pipeline_s_and_none_is_not(images, tiny):
    assert aligned(Asked(), images, tiny) > ALIGNED
    assert aligned(Asked(torch.zeros_like), images, tiny) < ALIGNED


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_it_is_measured_in_the_ball_at_a_random_point_and_a_step_up_the_gradient(images, tiny, value):
    model, images = Asked(), torch.full_like(images, value)

    aligned(model, images, tiny)

    first, second = model.differentiated
    moved = first - images
    assert STEP * 0.8 < moved.abs().max() <= STEP + 1e-6
    assert moved.unique().numel() > IMAGES * SIDE  # not the corners alone
    assert (moved.min() < -0.01) == (value > 0)
    assert (moved.max() > 0.01) == (value < 1)
    # the first class falls by the weights, and so does its lead over any other
    uphill = (first - STEP * LINEAR.weight.sign().view(1, 1, SIDE, SIDE)).clamp(0, 1)
    torch.testing.assert_close(second, uphill)


@pytest.mark.parametrize("missing", [0.0, torch.nan])
def test_a_pixel_without_a_gradient_stays_from_point_to_point(images, tiny, missing):
    def upper(gradient):
        return torch.cat([gradient[..., :2, :], torch.full_like(gradient[..., 2:, :], missing)], 2)

    model = Asked(upper)

    aligned(model, images, tiny)

    first, second = model.differentiated
    moved = (second - first).abs()
    torch.testing.assert_close(moved[..., :2, :], torch.full_like(moved[..., :2, :], STEP))
    assert bool((moved[..., 2:, :] == 0).all())


def test_directions_are_signs_and_their_two_ends_lie_on_either_side_of_the_point(images, tiny):
    model = Asked()

    aligned(model, images, tiny)

    half = len(model.answered) // 2
    assert half % 2 == 0
    for point, ends in zip(model.differentiated, (model.answered[:half], model.answered[half:]), strict=True):
        for up, down in zip(ends[::2], ends[1::2], strict=True):
            torch.testing.assert_close((up + down) / 2, point)
            torch.testing.assert_close((up - point).abs(), torch.full_like(point, STEP))
        signs = torch.stack([(up - point).sign() for up in ends[::2]])
        assert 0.4 < float((signs > 0).float().mean()) < 0.6
        assert len(signs.flatten(1).unique(dim=0)) == len(signs)  # each its own


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_end_of_a_direction_leaves_the_range_of_an_image(images, tiny, value):
    model = Asked()

    found = aligned(model, torch.full_like(images, value), tiny)

    asked = torch.stack(model.answered)
    assert float(asked.min()) >= 0
    assert float(asked.max()) <= 1
    assert found == pytest.approx(1, abs=1e-3)  # by the change that there was, not by the one that was wanted


def test_the_seed_says_which_points_and_directions(images, tiny):
    models = [Asked(), Asked(), Asked()]

    for model, seed in zip(models, (0, 0, 1), strict=True):
        aligned(model, images, tiny, seed=seed)

    one, again, other = (torch.stack(model.answered) for model in models)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_gradient_and_differences_meet_the_same_noise_which_is_nobody_else_s(images, tiny):
    seen = []

    def purify(images, ids):
        seen.append(ids)
        return images

    target = Target.purified(LINEAR, purify, random=True)
    plan = Plan(target, LINEAR, replace(tiny, eot=3), EPS, IMAGES, CLASSES)

    alignment(plan, images, torch.zeros(IMAGES, dtype=torch.int64), seed=0)

    expected = noise_seeds(torch.arange(IMAGES), range(1), SeedStream.ALIGNMENT)
    assert all(torch.equal(ids, expected) for ids in seen)


def test_another_class_is_any_but_the_label():
    labels = torch.arange(4).repeat_interleave(100)

    others = other_classes(labels, 4, torch.Generator().manual_seed(0))

    assert others.dtype == torch.int64
    for label in range(4):
        assert set(others[labels == label].tolist()) == set(range(4)) - {label}


def test_log_odds_are_the_other_class_s_lead_and_right_is_where_the_label_leads():
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 2.0, 9.0], [1.5, 1.0, 7.0]])
    goal = log_odds(torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 1, 0]))

    assert goal.loss(logits, torch.tensor([0, 1, 2])).tolist() == [2, 0, -0.5]
    assert goal.loss(logits, torch.tensor([3, 3, 3])).tolist() == [-2, 0, 0.5]
    assert goal.right(logits, torch.tensor([0, 1, 2])).tolist() == [False, False, True]
