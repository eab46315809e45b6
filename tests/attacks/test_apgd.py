from itertools import pairwise

import pytest
import torch
from torch import nn

from fastdef.attacks import apgd, apgd_targeted, cross_entropy, dlr, likeliest, margin, search, targeted_dlr, white_box
from fastdef.attacks._apgd import _Found
from fastdef.attacks._goal import Goal, QueryResult, untargeted

EPS = 8 / 255


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


@pytest.fixture
def batch(model):
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images, model(images).argmax(1)


@pytest.mark.parametrize("loss", [cross_entropy, dlr, margin])
def test_it_stays_in_the_ball_and_turns_answers(model, batch, loss):
    images, labels = batch

    attacked = apgd(model, images, labels, eps=EPS, iterations=20, loss=loss)

    assert (attacked - images).abs().max() <= EPS + 1e-7
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert (model(attacked).argmax(1) == labels).float().mean() < 0.3


def test_the_targeted_form_turns_answers_too(model, batch):
    images, labels = batch

    attacked = apgd_targeted(model, images, labels, eps=EPS, iterations=20, targets=4)

    assert (attacked - images).abs().max() <= EPS + 1e-7
    assert (model(attacked).argmax(1) == labels).float().mean() < 0.3


def test_an_image_does_not_depend_on_its_neighbours(model, batch):
    images, labels = batch

    def attack(rows):
        goal = untargeted(labels[rows])
        generator = torch.Generator().manual_seed(0)
        return search([white_box(model, goal)], images[rows], eps=EPS, iterations=8, generator=generator)

    both = attack(torch.tensor([0, 1]))
    swapped = attack(torch.tensor([0, 5]))

    torch.testing.assert_close(both[0], swapped[0])


def test_an_image_that_has_fallen_is_asked_for_no_more(model, batch):
    images, _ = batch
    asked = []

    def ask(x, rows):
        asked.append(rows.tolist())
        return QueryResult(torch.zeros(len(x)), torch.ones_like(x), (rows != 3).float())

    search([ask], images, eps=EPS, iterations=5, patience=1)

    assert sum(3 in rows for rows in asked) == 2  # its start, and one iteration more
    assert all(0 in rows for rows in asked)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_an_image_stays_for_as_many_iterations_as_there_is_patience(batch, patience):
    asked = []

    def ask(x, rows):
        asked.append(rows.tolist())
        falls = (rows == 3) & (torch.tensor(len(asked) >= 3))
        return QueryResult(torch.zeros(len(x)), torch.ones_like(x), (~falls).float())

    search([ask], batch[0], eps=EPS, iterations=9, patience=patience)

    assert sum(3 in rows for rows in asked) == 3 + patience
    assert sum(0 in rows for rows in asked) == 10


def test_an_image_that_fell_by_a_lucky_draw_leaves_all_the_same(batch):
    asked = []

    def ask(x, rows):
        asked.append(rows.tolist())
        lucky = (rows == 3) & (torch.tensor(len(asked) == 3))
        return QueryResult(torch.zeros(len(x)), torch.ones_like(x), (~lucky).float())

    search([ask], batch[0], eps=EPS, iterations=9, patience=2)

    assert sum(3 in rows for rows in asked) == 5


def test_a_pixel_without_a_gradient_stays_where_it_started(batch):
    images, seen = batch[0], []
    moving = torch.zeros_like(images)
    moving[..., 4:] = 1

    def ask(x, rows):
        seen.append(x.clone())
        return QueryResult(torch.arange(len(x)) + float(len(seen)), moving[rows], torch.ones(len(x)))

    search([ask], images, eps=EPS, iterations=3)

    for later in seen[1:]:
        torch.testing.assert_close(later[..., :4], seen[0][..., :4])
        assert not torch.equal(later[..., 4:], seen[0][..., 4:])


def test_what_has_fallen_to_one_is_not_asked_by_the_next(batch):
    asked = []

    def first(x, rows):
        return QueryResult(torch.zeros(len(x)), torch.ones_like(x), 0.5 * (rows != 3).float())

    def second(x, rows):
        asked.append(rows.tolist())
        return first(x, rows)

    search([first, second], batch[0], eps=EPS, iterations=1)

    assert set(asked[0]) == set(range(12)) - {3}


def test_two_restarts_start_twice(model, batch):
    visits = Visits(model)

    apgd(visits, *batch, eps=1e-4, iterations=3, restarts=2)

    assert len(visits.points) == 8
    assert not torch.equal(visits.points[0], visits.points[4])


def test_of_random_answers_the_point_that_fewest_draws_answer_right_is_kept(batch):
    images, _ = batch
    shares = iter([1.0, 0.5, 0.75, 0.25, 0.5, 1.0])
    asked = []

    def ask(x, rows):
        asked.append(x.clone())
        share = next(shares)
        return QueryResult(torch.zeros(len(x)), torch.randn_like(x), torch.full((len(x),), share))

    found = search([ask], images, eps=EPS, iterations=5)

    assert torch.equal(found, asked[3])


def test_the_step_halves_where_the_loss_does_not_rise(batch):
    images = torch.full((1, 1, 2, 2), 0.5)
    moves = []

    def ask(x, rows):
        moves.append(x.clone())
        return QueryResult(torch.zeros(1), (-1.0) ** len(moves) * torch.ones_like(x), torch.ones(1))

    search([ask], images, eps=0.1, iterations=60)

    widths = [float((b - a).abs().max()) for a, b in pairwise(moves)]
    assert max(widths[-10:]) < max(widths[:10]) / 4


def test_dlr_is_the_published_formula_and_blind_to_scale():
    logits = torch.tensor([[3.0, 1.0, 0.0, -2.0], [1.0, 4.0, 2.0, 0.0]])
    labels = torch.tensor([0, 0])

    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-(3 - 1) / (3 - 0), -(1 - 4) / (4 - 1)]))
    torch.testing.assert_close(dlr(7 * logits, labels), dlr(logits, labels))
    torch.testing.assert_close(
        targeted_dlr(logits, labels, torch.tensor([1, 2])),
        torch.tensor([-(3 - 1) / (3 - (0 - 2) / 2), -(1 - 2) / (4 - (1 + 0) / 2)]),
    )


def test_the_likeliest_classes_leave_the_label_out():
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0]])

    assert [int(target) for target in likeliest(logits, torch.tensor([0]), 9)] == [2, 3, 1]
    assert [int(target) for target in likeliest(logits, torch.tensor([2]), 2)] == [0, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps in pixel units"),
        ({"eps": 8.0}, "eps in pixel units"),
        ({"iterations": 0}, "at least one step"),
        ({"restarts": 0}, "at least one restart"),
        ({"labels": torch.full((12,), 5)}, "5 classes, got a label 5"),
    ],
)
def test_bad_input_is_refused(model, batch, change, message):
    images, labels = batch
    arguments = {"images": images, "labels": labels, "eps": EPS, "iterations": 1, **change}

    with pytest.raises(ValueError, match=message):
        apgd(model, **arguments)


@pytest.mark.parametrize("attack", [apgd, apgd_targeted])
def test_what_gives_no_gradient_is_refused(model, batch, attack):
    with pytest.raises(ValueError, match="need a differentiable model"):
        attack(lambda images: model(images).detach(), *batch, eps=EPS)


def test_three_classes_are_too_few_for_the_targeted_loss(batch):
    images, _ = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    with pytest.raises(ValueError, match="at least four classes, got 3"):
        apgd_targeted(model, images, torch.zeros(12, dtype=torch.int64), eps=EPS)


def test_any_goal_can_be_asked_for(model, batch):
    images, _ = batch
    goal = Goal(lambda logits, rows: logits[:, 4], lambda logits, rows: logits[:, 4] < 1e9)

    raised = search([white_box(model, goal)], images, eps=EPS, iterations=10)

    assert bool((model(raised)[:, 4] > model(images)[:, 4]).all())


class Visits(nn.Module):
    """The model, and every point that it was asked about."""

    def __init__(self, model):
        super().__init__()
        self.model, self.points = model, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        return self.model(x)


@pytest.mark.parametrize("iterations", [4, 30, 100])
def test_every_point_of_its_way_is_autoattack_s(model, batch, iterations):
    autopgd_base = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is not installed here")
    images, labels = batch
    ours, theirs = Visits(model), Visits(model)
    library = autopgd_base.APGDAttack(theirs, n_iter=iterations, norm="Linf", eps=EPS, seed=0, device="cpu")
    library.init_hyperparam(images)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        library.attack_single_run(images, labels)
    ask = white_box(ours, untargeted(labels))
    generator = torch.Generator().manual_seed(3)
    search([ask], images, eps=EPS, iterations=iterations, patience=iterations, generator=generator)

    assert len(ours.points) == len(theirs.points) == iterations + 1
    for mine, other in zip(ours.points, theirs.points, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_what_is_kept_is_right_least_often_and_then_of_the_highest_loss():
    found = _Found.nothing(torch.zeros(1, 1, 1, 1))
    rows = torch.tensor([0])
    kept = []
    for number, (right, loss) in enumerate([(1.0, 0.5), (1.0, 0.4), (1.0, 0.6), (0.5, 0.1), (1.0, 9.0), (0.5, 0.2)]):
        x = torch.full((1, 1, 1, 1), float(number))
        found.offer(rows, x, QueryResult(torch.tensor([loss]), x, torch.tensor([right])))
        kept.append(int(found.x))

    assert kept == [0, 0, 2, 3, 3, 5]
