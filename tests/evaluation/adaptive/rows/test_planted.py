"""Planted examples where a readout is linear: where they stand, what is asked, and which count as missed."""

from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.alignment import log_odds
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream, noise_seeds
from fastdef.evaluation.adaptive.rows import planted
from fastdef.evaluation.adaptive.target import Answers
from tests.evaluation.adaptive.linear import EPS, IMAGES, LINEAR, PLAIN, asked, planned


class Recorded:
    """The linear model as a target that notes what it is asked, and lowers the other classes by a draw's penalty."""

    def __init__(self, penalty=lambda ids: torch.zeros(len(ids))):
        self.penalty, self.asked = penalty, []

    def __call__(self, images, ids):
        self.asked.append((images, ids))
        logits = LINEAR(images) - self.penalty(ids)[:, None] * torch.tensor([0.0, 1.0, 1.0, 1.0])
        nothing = torch.zeros(len(ids), dtype=torch.int64)
        return Answers(logits, nothing, nothing.bool())


def leads(readout, images):
    """What the readout is of, without its bias."""
    return readout.goal.loss(LINEAR(images), torch.arange(len(images)))


def test_the_boundary_stands_three_quarters_of_the_way_from_the_best_random_point_to_the_planted_one(tiny, batch):
    answer = Recorded()

    readout = planted.plant(planned(Target(answer, classifier=LINEAR), tiny, iterations=40), batch)

    values = torch.stack([leads(readout, images) for images, _ in answer.asked])
    top, reached = values[:40].amax(0), leads(readout, readout.planted)
    torch.testing.assert_close(values[-1], reached)
    assert bool((reached > top).all())
    torch.testing.assert_close(readout.bias, top + 3 / 4 * (reached - top))
    for images, _ in answer.asked:  # random points and those of the hunt are corners of the ball
        torch.testing.assert_close((images - batch.images).abs(), torch.full_like(images, EPS))
    assert len({tuple(images.flatten().tolist()) for images, _ in answer.asked[:40]}) == 40


def test_there_are_as_many_random_points_as_the_attack_has_iterations_and_not_fewer_than_some(tiny, batch):
    asked = []
    for iterations in (5, 10, 50, 70):
        answer = Recorded()
        planted.plant(planned(Target(answer, classifier=LINEAR), tiny, iterations=iterations), batch)
        asked.append(len(answer.asked))

    assert asked[0] == asked[1] < asked[2] == asked[3] - 20


def test_the_planted_point_is_better_than_chance_and_nearly_the_best_there_is(tiny, batch):
    readout = planted.plant(planned(PLAIN, tiny), batch)

    best = leads(readout, batch.images - EPS * LINEAR.weight.sign().view(1, 1, 4, 4))
    start, reached = leads(readout, batch.images), leads(readout, readout.planted)
    assert bool(((reached - start) > 0.9 * (best - start)).all())


def test_of_a_random_target_the_search_meets_the_same_draws_and_its_result_others(tiny, batch):
    answer = Recorded()

    planted.plant(planned(Target(answer, classifier=LINEAR, random=True), tiny), batch)

    draws = len(answer.asked[0][1]) // IMAGES
    assert draws > 1
    *search, last = [ids.tolist() for _, ids in answer.asked]
    assert all(ids == noise_seeds(batch.ids, range(draws), SeedStream.PLANT).tolist() for ids in search)
    assert last == noise_seeds(batch.ids, range(draws, 2 * draws), SeedStream.PLANT).tolist()


def test_a_target_that_draws_nothing_is_asked_once_for_each_value(tiny, batch):
    answer = Recorded()

    planted.plant(planned(Target(answer, classifier=LINEAR), tiny), batch)

    once = noise_seeds(batch.ids, range(1), SeedStream.PLANT).tolist()
    *search, last = [ids.tolist() for _, ids in answer.asked]
    assert all(ids == once for ids in search)
    assert last == noise_seeds(batch.ids, range(1, 2), SeedStream.PLANT).tolist()


def test_a_point_that_only_its_own_noise_put_above_the_random_ones_has_the_boundary_at_their_best(tiny, batch):
    known = noise_seeds(batch.ids, range(2), SeedStream.PLANT)
    answer = Recorded(lambda ids: torch.where(torch.isin(ids, known), 0.0, 3.0))

    readout = planted.plant(planned(Target(answer, classifier=LINEAR, random=True), tiny, iterations=40), batch)

    values = torch.stack([leads(readout, images[::2]) for images, _ in answer.asked])
    torch.testing.assert_close(readout.bias, values[:40].amax(0))


def test_a_value_is_the_mean_over_its_draws(tiny, batch):
    first = noise_seeds(batch.ids, range(1), SeedStream.PLANT)
    answer = Recorded(lambda ids: torch.where(torch.isin(ids, first), 0.5, 0.0))
    calm = planted.plant(planned(Target(Recorded(), classifier=LINEAR, random=True), tiny), batch)

    readout = planted.plant(planned(Target(answer, classifier=LINEAR, random=True), tiny), batch)

    # the random points lose a half of the penalty, the planted one nothing
    torch.testing.assert_close(readout.bias, calm.bias - 0.25 * 0.25)


def test_the_batch_s_seed_says_what_is_planted(tiny, batch):
    made = [planted.plant(planned(PLAIN, tiny), each) for each in (batch, batch, replace(batch, seed=8))]

    assert torch.equal(made[0].bias, made[1].bias)
    assert not torch.equal(made[0].bias, made[2].bias)


@pytest.mark.parametrize(("value", "down", "up"), [(0.5, 0.4, 0.6), (0.0, 0.0, 0.1), (1.0, 0.9, 1.0)])
def test_a_random_corner_is_a_corner_in_the_range_of_an_image(value, down, up):
    images = torch.full((4, 1, 16, 16), value)

    made = planted.random_corner(images, 0.1, torch.Generator().manual_seed(0))

    low, high = (made - down).abs() < 1e-6, (made - up).abs() < 1e-6
    assert bool((low | high).all())
    assert 0.45 < float(high.float().mean()) < 0.55


GOAL = log_odds(torch.zeros(IMAGES, dtype=torch.int64), torch.ones(IMAGES, dtype=torch.int64))


def test_a_readout_is_the_lead_less_the_bias_of_each_row():
    readout = planted.Readout(GOAL, torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), torch.zeros(IMAGES, 1, 4, 4))

    found = readout(torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([1, 4]))

    assert found.tolist() == [1, -2]


def test_the_attack_raises_the_readout_until_it_is_above_0(tiny, batch, monkeypatch):
    plan = planned(PLAIN, tiny)
    lead = GOAL.loss(LINEAR(batch.images), batch.ids)
    margins = torch.tensor([-0.5, -0.01, 0.0, 0.01, 0.5])
    readout = planted.Readout(GOAL, lead - margins, batch.images)
    monkeypatch.setattr(planted, "plant", lambda plan, batch: readout)

    (ask,) = asked(monkeypatch, planted.planted(plan), batch)

    found = ask(batch.images, batch.ids)
    torch.testing.assert_close(found.loss, margins)
    assert found.right.tolist() == [1, 1, 1, 0, 0]  # a point on the boundary is not beyond it


def test_the_attack_meets_its_own_noise(tiny, batch, monkeypatch):
    seen = []

    def purify(images, ids):
        seen.append(ids.tolist())
        return images

    case = planted.planted(planned(Target.purified(LINEAR, purify, random=True), tiny))
    (ask,) = asked(monkeypatch, case, batch)
    seen.clear()

    ask(batch.images, batch.ids)

    assert seen == [NoiseSeeds(batch.ids, SeedStream.ATTACK).next(batch.ids, 3).tolist()]


def test_what_is_planted_serves_the_attack_and_its_evaluation_and_is_kept_for_one_batch(tiny, batch, monkeypatch):
    made, plant = [], planted.plant
    monkeypatch.setattr(planted, "plant", lambda plan, batch: made.append(batch.seed) or plant(plan, batch))
    case = planted.planted(planned(PLAIN, tiny))

    for seed in (7, 8, 7):
        each = replace(batch, seed=seed)
        case.evaluate(each, case.craft(each)[0], 1, SeedStream.EVALUATION)

    assert made == [7, 8, 7]


def test_the_case_has_the_dear_share_of_the_images_and_is_no_headline(tiny):
    case = planted.planted(planned(Target.purified(LINEAR, lambda x, ids: x, random=True), tiny, images=10))

    assert (case.row, case.name, case.eps, case.images) == (0, "planted examples missed", EPS, 6)
    assert (case.noise_samples, case.counts) == (8, False)
    assert case.craft.settings == {"gradient": "BPDA", "steps": None, "eot": 3, "iterations": 20}


class Scripted:
    """A target whose lead of class 1 is a table's: by the image's first pixel its row, by the draw its column."""

    def __init__(self, table):
        self.table, self.ids = torch.tensor(table), []

    def __call__(self, images, ids):
        self.ids.append(ids.tolist())
        row, column = (100 * images[:, 0, 0, 0]).round().long(), (ids >> 24) % 256
        lead = self.table[row, column % self.table.shape[1]]
        logits = torch.stack([torch.zeros(len(ids)), lead], 1)
        nothing = torch.zeros(len(ids), dtype=torch.int64)
        return Answers(logits, nothing, nothing.bool())


NAN, INF = float("nan"), float("inf")
TABLE = [
    [0.0, 0.0, 0.0, 0.0],  # 0: not above a bias of 0.5
    [1.0, 1.0, 1.0, 1.0],  # 1: above it
    [1.0, 1.0, 0.0, 0.0],  # 2: by half of the draws
    [1.0, 1.0, 1.0, 0.0],  # 3: by most
    [0.5, 0.5, 0.5, 0.5],  # 4: on the boundary
    [NAN, 1.0, 1.0, 1.0],  # 5: one is no answer
    [NAN, NAN, 1.0, 1.0],  # 6: half are none
    [1.2, 1.2, 0.6, 0.6],  # 7: all above, by little
    [INF, INF, 1.0, 1.0],  # 8: half are none, though the other class's logit is infinite
]


def looked_at(tiny, batch, monkeypatch, clean, planted_at, points):
    """The predictions for images, planted points and attacked ones of these rows of the table."""
    answer = Scripted(TABLE)
    plan = planned(Target(answer, classifier=LINEAR, random=True), tiny)

    def images(rows):
        return torch.tensor(rows).view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 100

    readout = planted.Readout(GOAL, torch.full((len(clean),), 0.5), images(planted_at))
    monkeypatch.setattr(planted, "plant", lambda plan, batch: readout)
    ids, labels = torch.arange(len(clean)), torch.zeros(len(clean), dtype=torch.int64)
    given = replace(batch, images=images(clean), labels=labels, ids=ids)
    return planted.planted(plan).evaluate(given, images(points), 4, SeedStream.EVALUATION), answer


def test_an_example_is_missed_where_most_draws_do_not_pass_the_boundary(tiny, batch, monkeypatch):
    found, _ = looked_at(tiny, batch, monkeypatch, [0] * 5, [1] * 5, [0, 1, 2, 3, 4])

    assert found.right.tolist() == [[missed] * 4 for missed in (True, False, True, False, True)]
    assert found.steps.tolist() == [[0] * 4] * 5
    assert found.steps.dtype == torch.int32
    assert found.capped.tolist() == [[False] * 4] * 5
    assert found.answered.tolist() == [[True] * 4] * 5
    torch.testing.assert_close(found.loss, torch.tensor([-0.5, 0.5, 0.0, 0.25, 0.0]))


def test_only_what_holds_is_counted(tiny, batch, monkeypatch):
    clean, at = [0, 1, 2, 3, 0], [1, 1, 3, 1, 2]  # of the second and fourth the image itself is beyond the boundary

    found, _ = looked_at(tiny, batch, monkeypatch, clean, at, [0, 0, 7, 0, 0])

    assert found.right.tolist() == [[True] * 4, [False] * 4]  # the first and the third
    torch.testing.assert_close(found.loss, torch.tensor([-0.5, 0.4]))
    for part in (found.steps, found.capped, found.answered):
        assert part.shape == (2, 4)


def test_what_is_no_answer_finds_nothing(tiny, batch, monkeypatch):
    found, _ = looked_at(tiny, batch, monkeypatch, [0] * 3, [1] * 3, [5, 6, 8])

    assert found.right.tolist() == [[False] * 4, [True] * 4, [True] * 4]
    assert found.answered.tolist() == [[False, True, True, True], *[[False, False, True, True]] * 2]
    torch.testing.assert_close(found.loss, torch.tensor([3 * 0.5 / 4, *[2 * 0.5 / 4] * 2]))


def test_it_is_judged_by_the_draws_that_the_suite_asks_for(tiny, batch, monkeypatch):
    _, answer = looked_at(tiny, batch, monkeypatch, [0, 0], [1, 1], [5, 6])

    assert answer.ids == [noise_seeds(torch.arange(2), range(4), SeedStream.EVALUATION).tolist()] * 3
