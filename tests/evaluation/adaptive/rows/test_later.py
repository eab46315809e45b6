"""Row 8's cases; what they reach is in the tests of the attacks themselves."""

from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.rows import later
from tests.evaluation.adaptive.linear import (
    GUARDED,
    IMAGES,
    LINEAR,
    OPAQUE,
    PLAIN,
    asked,
    counting,
    facts,
    left,
    planned,
)

RANDOM = Target.purified(LINEAR, lambda images, ids: images, random=True)
MARGIN = "probability margin, APGD"


@pytest.mark.parametrize(
    ("target", "gradient", "answers", "eot", "reason"),
    [
        (PLAIN, "autograd", 1, 1, "nothing is random"),
        (GUARDED, "BPDA", 1, 1, "nothing is random"),
        (Target.plain(LINEAR, random=True), "autograd", 7, 3, "no id says what the noise is"),
    ],
)
def test_two_attacks_count_and_noise_that_there_is_not_or_that_has_no_id_is_not_known(
    tiny, target, gradient, answers, eot, reason
):
    plan = planned(target, tiny, images=10)

    way = {"gradient": gradient, "steps": None, "iterations": 20, "eot": eot}
    assert facts(later, plan) == {
        MARGIN: (10, answers, {"loss": "probability margin", **way}),
        later.SMOOTH: (10, answers, {"loss": "cross-entropy", "block": 4, **way}),
    }
    assert counting(later, plan) == [MARGIN, later.SMOOTH]
    assert left(later, plan) == [(8, later.KNOWN, reason)]


def test_known_noise_is_one_draw_and_no_attack_on_a_deployment_that_draws_anew(tiny):
    plan = planned(RANDOM, tiny, images=10)

    way = {"gradient": "BPDA", "loss": "cross-entropy", "steps": None, "eot": 1, "iterations": 20}
    assert facts(later, plan)[later.KNOWN] == (10, 1, way)
    assert counting(later, plan) == [MARGIN, later.SMOOTH]
    assert left(later, plan) == []


def test_the_loop_is_gone_through_to_its_typical_length(defense, tiny):
    plan = planned(Target.defended(defense), tiny, depths=(2, 4, 6))

    assert {settings["steps"] for _, _, settings in facts(later, plan).values()} == {4}


def test_what_has_no_gradient_is_not_attacked(tiny):
    plan = planned(OPAQUE, tiny)

    assert left(later, plan) == [(8, "later attacks", "no gradients")]
    assert facts(later, plan) == {}


def searched(monkeypatch, images, block, tiny, batch, found=None):
    """The centre of the search over blocks, and the images that are made of what it finds."""
    centres = []
    plan = planned(PLAIN, tiny)
    craft = later.Smooth(plan, plan.gradient, "cross-entropy", None, 1, 5, block)

    def search(self, asks, given, **options):
        centres.append(given.images)
        return given.images if found is None else found

    monkeypatch.setattr(type(plan), "search", search)
    (points,) = craft(replace(batch, images=images))
    return centres[0], points


@pytest.mark.parametrize(
    ("sides", "block", "blocks"), [((8, 12), 4, (2, 3)), ((9, 11), 4, (2, 2)), ((3, 2), 4, (1, 1)), ((4, 8), 1, (4, 8))]
)
def test_there_are_as_many_blocks_as_fit_and_one_at_least(monkeypatch, tiny, batch, sides, block, blocks):
    images = torch.rand(IMAGES, 3, *sides)

    centre, points = searched(monkeypatch, images, block, tiny, batch)

    assert centre.shape == (IMAGES, 3, *blocks)
    assert bool((centre == 0.5).all())
    torch.testing.assert_close(points, images)  # the middle is no change


def test_what_is_found_is_added_to_each_block_and_stays_in_the_range_of_an_image(monkeypatch, tiny, batch):
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    found = torch.tensor([[0.4, 0.6], [0.75, 0.5]]).expand(3, 1, 2, 2)

    _, points = searched(monkeypatch, images, 2, tiny, batch, found)

    change = torch.tensor([[-0.1, -0.1, 0.1, 0.1]] * 2 + [[0.25, 0.25, 0.0, 0.0]] * 2)
    torch.testing.assert_close(points, (images + change).clamp(0, 1))


def known(tiny):
    """The case whose noise is known, and the ids that its target will be asked for."""
    seen = []

    def purify(images, ids):
        seen.append(ids.tolist())
        return images

    target = Target.purified(LINEAR, purify, random=True)
    return next(case for case in later.cases(planned(target, tiny)) if case.name == later.KNOWN), seen


def test_known_noise_is_answered_with_the_attack_s_first_draw_alone(tiny, batch):
    case, seen = known(tiny)

    found = case.evaluate(batch, batch.images, 9, SeedStream.EVALUATION)

    assert seen == [later.KnownSeeds(batch.ids, SeedStream.ATTACK).next(torch.arange(IMAGES), 1).tolist()]
    assert found.right.shape == (IMAGES, 1)


def test_known_noise_is_attacked_by_the_same_draw_again_and_again(tiny, batch, monkeypatch):
    case, seen = known(tiny)
    (ask,) = asked(monkeypatch, case, batch)

    ask(batch.images, batch.ids)
    ask(batch.images, batch.ids)

    assert seen[0] == seen[1] == later.KnownSeeds(batch.ids, SeedStream.ATTACK).next(batch.ids, 1).tolist()
