"""What a plan makes of a budget and a target, and what a case is where nothing else is said."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest
import torch

from fastdef.attacks import QueryResult
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.attack_case import UNRECORDED, Attack, AttackCase, Kept, Plan, key_of
from fastdef.evaluation.adaptive.score import by_label
from tests.evaluation.adaptive.linear import CLASSES, GUARDED, IMAGES, LINEAR, PLAIN

RANDOM = Target.plain(LINEAR, random=True)
EPS = 0.1


def plan(target, budget, images=IMAGES, **options):
    return Plan(target, LINEAR, budget, EPS, images, CLASSES, **options)


@dataclass(frozen=True)
class Halfway(Attack):
    """An attack with a setting, and with something that is none."""

    secret: str = field(repr=False, metadata=UNRECORDED)
    share: float

    def __call__(self, batch):
        return [batch.images]


def test_an_attack_s_settings_are_its_fields_less_those_that_are_none(tiny):
    attack = Halfway(plan(PLAIN, tiny), "hidden", 0.5)

    assert attack.settings == {"share": 0.5}
    assert repr(attack) == "Halfway(share=0.5)"


def test_an_attack_says_how_its_images_are_made(tiny):
    class Silent(Attack):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Silent(plan(PLAIN, tiny))


def test_what_was_kept_comes_back_a_candidate_for_each_image(tiny, batch):
    kept, asked = torch.rand(2 * IMAGES, 1, 4, 4), []

    first, second = Kept(plan(PLAIN, tiny), "1-a")(replace(batch, kept=lambda key: asked.append(key) or kept))

    assert torch.equal(torch.cat([first, second]), kept)
    assert len(first) == IMAGES
    assert asked == ["1-a"]


def test_a_case_counts_and_neither_keeps_nor_needs_where_nothing_else_is_said(tiny):
    case = AttackCase(3, "C&W margin, -1.5+", Halfway(plan(PLAIN, tiny), "", 1.0), by_label(PLAIN), EPS, 4, 1)

    assert case.counts
    assert not case.keeps
    assert case.needs is None
    assert case.view is nullcontext
    assert case.key == key_of(3, case.name) == "3-C_W_margin__-1.5+"


def test_a_batch_s_generator_begins_anew_and_with_its_seed(batch):
    drawn = [torch.rand(3, generator=each.generator()) for each in (batch, batch, replace(batch, seed=8))]

    assert torch.equal(drawn[0], torch.rand(3, generator=torch.Generator().manual_seed(batch.seed)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_plan_has_no_surrogate_and_no_alignment_unless_they_are_given(tiny):
    assert plan(PLAIN, tiny).surrogate is None
    assert plan(PLAIN, tiny).alignment is None


@pytest.mark.parametrize(
    ("target", "share", "images", "expected"),
    [(PLAIN, 0.25, 12, 12), (GUARDED, 0.25, 12, 3), (GUARDED, 0.75, 2, 2), (GUARDED, 0.25, 1, 1)],
)
def test_what_costs_most_is_run_on_a_share_where_something_stands_before_the_model(
    tiny, target, share, images, expected
):
    assert plan(target, replace(tiny, expensive_share=share), images).expensive_images == expected


@pytest.mark.parametrize(("target", "guarded", "gradient"), [(PLAIN, False, "autograd"), (GUARDED, True, "BPDA")])
def test_a_purification_is_what_guards_and_what_bpda_goes_through(tiny, target, guarded, gradient):
    assert plan(target, tiny).guarded is guarded
    assert plan(target, tiny).gradient == gradient


@pytest.mark.parametrize(("target", "expected"), [(PLAIN, (1, 1, 1, 0)), (RANDOM, (5, 6, 7, 8))])
def test_answers_draws_and_patience_are_the_budget_s_where_something_is_random(tiny, target, expected):
    made = plan(target, replace(tiny, noise_samples=5, reevaluations=6, eot=7, patience=8))

    assert (made.noise_samples, made.reevaluations, made.eot, made.patience) == expected


@pytest.mark.parametrize(("depths", "typical"), [((3, 4, 5, 6, 7), 5), ((3, 4), 4), ((3,), 3)])
def test_the_typical_length_of_the_loop_is_the_middle_one(defense, tiny, depths, typical):
    budget = replace(tiny, depths=depths)

    assert plan(Target.defended(defense), budget).typical_steps == typical
    assert plan(PLAIN, budget).typical_steps is None
    assert plan(GUARDED, budget).typical_steps is None  # no loop there


def counting(right):
    """A query whose loss is the pixels' sum, with a list of the points that it was asked."""
    asked = []

    def ask(x, rows):
        asked.append(x)
        return QueryResult(x.flatten(1).sum(1), torch.ones_like(x), torch.full((len(x),), right))

    return ask, asked


def test_a_search_goes_as_far_and_as_long_as_the_plan_says(tiny, batch):
    ask, asked = counting(1.0)

    found = plan(PLAIN, replace(tiny, iterations=6)).search([ask], batch)

    assert len(asked) == 1 + 6
    torch.testing.assert_close(found, batch.images + EPS)


def test_a_search_goes_as_far_and_as_long_as_it_is_told(tiny, batch):
    ask, asked = counting(1.0)

    found = plan(PLAIN, tiny).search([ask], batch, eps=0.2, iterations=3)

    assert len(asked) == 1 + 3
    torch.testing.assert_close(found, batch.images + 0.2)


def test_a_search_of_no_radius_stays_at_the_image(tiny, batch):
    ask, _ = counting(1.0)

    found = plan(PLAIN, tiny).search([ask], batch, eps=0.0)

    assert torch.equal(found, batch.images)


@pytest.mark.parametrize(("target", "queries"), [(PLAIN, 1), (RANDOM, 1 + 2)])
def test_an_image_that_has_fallen_leaves_at_once_or_after_the_patience_for_what_is_random(tiny, batch, target, queries):
    ask, asked = counting(0.0)

    plan(target, replace(tiny, patience=2)).search([ask], batch, iterations=9)

    assert len(asked) == queries


def test_a_search_begins_where_the_batch_s_seed_says(tiny, batch):
    begun = []
    for each in (batch, batch, replace(batch, seed=8)):
        ask, asked = counting(1.0)
        plan(PLAIN, tiny).search([ask], each)
        begun.append(asked[0])

    assert torch.equal(begun[0], begun[1])
    assert not torch.equal(begun[0], begun[2])
