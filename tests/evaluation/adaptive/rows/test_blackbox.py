"""Row 6: attacks by answers, and how many of them they take."""

from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive import Target, autoattack
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows import blackbox
from fastdef.evaluation.adaptive.target import Answers
from tests.evaluation.adaptive.linear import EPS, IMAGES, LINEAR, OPAQUE, PLAIN, counting, facts, planned

RANDOM = Target.purified(LINEAR, lambda images, ids: images, random=True)


@pytest.mark.parametrize(("target", "images", "answers", "draws"), [(RANDOM, 6, 7, 5), (PLAIN, 10, 1, 1)])
def test_both_have_the_same_queries_and_ask_a_random_defense_several_times(tiny, target, images, answers, draws):
    plan = planned(target, tiny, images=10, queries=50, query_draws=5)

    settings = {"queries": 50, "queries_a_decision": draws}
    assert facts(blackbox, plan) == {"Square": (images, answers, settings), "RayS": (images, answers, settings)}
    assert counting(blackbox, plan) == ["Square", "RayS"]


@pytest.mark.parametrize(("draws", "decisions"), [(1, 17), (2, 8), (5, 3)])
def test_a_decision_costs_its_draws(tiny, draws, decisions):
    assert blackbox.RayS(planned(OPAQUE, tiny), 17, draws).decisions == decisions


class Fickle:
    """A random target that notes its ids, and whose answers to an image are wrong in the order of ``share``."""

    def __init__(self, share):
        self.share, self.ids = share, []

    def __call__(self, images, ids):
        self.ids.append(ids)
        assert len(images) == len(ids)
        wrong = torch.arange(len(ids)) % len(self.share)
        logits = torch.tensor([[0.0, 2.0, -9.0] if each else [1.0, 0.0, -9.0] for each in self.share])[wrong]
        nothing = torch.zeros(len(ids), dtype=torch.int64)
        return Answers(logits, nothing, nothing.bool())


def given(monkeypatch, module, name, craft, batch):
    """What an attack hands to the library's, and that it hands on what comes back."""
    noted, result = [], torch.rand_like(batch.images)

    def attack(*given, **options):
        noted.append((given, options))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, name, attack)
        (points,) = craft(batch)
    assert points is result
    return noted[0]


@pytest.mark.parametrize(
    ("share", "wrong"),
    [
        ((False, False, False), False),
        ((True, False, False), False),
        ((True, True, False), True),
        ((True, False), False),
    ],
)
def test_rays_takes_an_image_for_fooled_where_most_draws_are_wrong(monkeypatch, tiny, batch, share, wrong):
    answer = Fickle(share)
    craft = blackbox.RayS(planned(Target.opaque(answer, random=True), tiny), 30, len(share))

    (decide, images), options = given(monkeypatch, blackbox, "rays", craft, batch)

    assert images is batch.images
    assert options == {"eps": EPS, "queries": 30 // len(share)}
    rows = torch.tensor([1, 3])
    assert decide(images[rows], rows).tolist() == [wrong, wrong]
    draws = NoiseSeeds(batch.ids, SeedStream.QUERIES)
    assert answer.ids[0].tolist() == draws.next(rows, len(share)).tolist()


def test_rays_knows_whose_label_it_asks_for(monkeypatch, tiny, batch):
    batch = replace(batch, labels=torch.tensor([0, 1, 0, 1, 1]))
    craft = blackbox.RayS(planned(PLAIN, tiny), 30, 1)

    (decide, images), _ = given(monkeypatch, blackbox, "rays", craft, batch)

    assert decide(images[1:4], torch.tensor([1, 2, 3])).tolist() == [True, False, True]


def test_square_is_told_the_mean_log_probability_of_draws_that_none_met_before(monkeypatch, tiny, batch):
    answer = Fickle((True, False))
    craft = blackbox.Square(planned(Target.opaque(answer, random=True), tiny), 31, 2)

    (predict, images, labels), options = given(monkeypatch, autoattack, "square", craft, batch)

    assert images is batch.images
    assert labels is batch.labels
    assert options == {"eps": EPS, "queries": 15, "seed": batch.seed}
    two = torch.tensor([[0.0, 2.0, -9.0], [1.0, 0.0, -9.0]]).log_softmax(1).mean(0)
    torch.testing.assert_close(predict(images), two.expand(IMAGES, 3))
    torch.testing.assert_close(predict(images[:2]), two.expand(2, 3))
    draws = NoiseSeeds(batch.ids, SeedStream.QUERIES)
    expected = [draws.next(torch.arange(count), 2).tolist() for count in (IMAGES, 2)]
    assert [ids.tolist() for ids in answer.ids] == expected


def test_square_gives_each_image_noise_though_more_are_asked_than_there_are(monkeypatch, tiny, batch):
    answer = Fickle((True, False))
    craft = blackbox.Square(planned(Target.opaque(answer, random=True), tiny), 31, 2)

    (predict, images, _), _ = given(monkeypatch, autoattack, "square", craft, batch)
    predict(images.repeat(3, 1, 1, 1))

    draws = NoiseSeeds(batch.ids, SeedStream.QUERIES)
    assert answer.ids[0].tolist() == draws.next(torch.arange(IMAGES).repeat(3), 2).tolist()
