"""Row 4: the smoothed loop, in the lengths of the budget."""

from dataclasses import replace

from fastdef.attacks import untargeted
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows import unrolled
from fastdef.evaluation.adaptive.unroll import unrolled as unrolled_query
from tests.evaluation.adaptive.linear import PLAIN, asked, counting, facts, left, planned

NAMES = ["APGD-CE, smoothed unroll of 2 steps", "APGD-CE, smoothed unroll of 4 steps"]


def test_every_length_is_run_on_the_dear_share_of_the_images_with_its_own_draws_and_iterations(defense, tiny):
    plan = planned(Target.defended(defense), tiny, unrolled=(2, 4), unrolled_eot=5, unrolled_iterations=6, images=10)

    assert facts(unrolled, plan) == {
        name: (6, 7, {"steps": steps, "eot": 5, "iterations": 6}) for name, steps in zip(NAMES, (2, 4), strict=True)
    }
    assert counting(unrolled, plan) == NAMES


def test_there_is_nothing_to_unroll_without_a_loop(tiny):
    plan = planned(PLAIN, tiny)

    assert left(unrolled, plan) == [(4, "smoothed unroll", "there is no Active Defense to unroll")]
    assert facts(unrolled, plan) == {}


def test_the_search_is_by_the_unrolled_gradient_of_its_own_length_and_draws(defense, dataset, tiny, batch, monkeypatch):
    batch = replace(batch, images=dataset.floats(0, len(batch.ids)))
    target = Target.defended(defense)
    case = list(unrolled.cases(planned(target, tiny, unrolled=(2, 4), unrolled_eot=2)))[1]

    (ask,) = asked(monkeypatch, case, batch)

    rows = batch.ids
    goal, draws = untargeted(batch.labels), NoiseSeeds(batch.ids, SeedStream.ATTACK)
    expected = unrolled_query(defense, goal, draws, eot=2, steps=4)(batch.images, rows)
    found = ask(batch.images, rows)
    assert found.loss.allclose(expected.loss)
    assert found.gradient.allclose(expected.gradient)
