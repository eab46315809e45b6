import pytest
import torch

from fastdef.attacks import rays


def linear(weights, bias):
    def wrong(points, rows):
        return (points.flatten(1) @ weights - bias) > 0

    return wrong


def test_it_finds_what_a_linear_classifier_allows():
    """The least radius is |w x - b| / |w|_1, in the direction of w's signs."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, generator=generator)
    images = torch.full((6, 1, 4, 4), 0.5)
    least = 0.05
    wrong = linear(weights, float(images[0].flatten() @ weights + least * weights.abs().sum()))

    found = rays(wrong, images, eps=1.5 * least, queries=2000)

    assert bool(wrong(found, None).all())
    assert (found - images).abs().max() <= 1.5 * least + 1e-6


def test_queries_are_bounded_and_the_result_stays_in_the_ball():
    calls = torch.zeros(4, dtype=torch.int64)

    def never(points, rows):
        calls[rows] += 1
        return torch.zeros(len(points), dtype=torch.bool)

    images = torch.rand(4, 3, 5, 5)

    found = rays(never, images, eps=0.1, queries=37)

    assert calls.tolist() == [37] * 4
    assert (found - images).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_answers_that_contradict_themselves_do_not_stop_it():
    generator = torch.Generator().manual_seed(0)

    def moody(points, rows):
        return torch.rand(len(points), generator=generator) < 0.5

    found = rays(moody, torch.rand(5, 1, 4, 4), eps=0.05, queries=200)

    assert bool(found.isfinite().all())


def beyond(radius, *, most=1000):
    """Wrong from this radius on, whatever the direction; and the calls."""
    calls = []

    def wrong(points, rows):
        calls.append(points)
        assert len(calls) <= most
        return (points - 0.5).abs().flatten(1).amax(1) >= radius

    return wrong, calls


@pytest.mark.parametrize("eps", [0.5, 0.6])
def test_an_image_is_through_when_its_radius_is_as_small_as_eps(eps):
    wrong, calls = beyond(0.5)  # of images that no radius over 0.5 moves further: gray ones

    rays(wrong, torch.full((1, 1, 1, 1), 0.5), eps=eps, queries=50, tolerance=0.6)

    assert len(calls) == 1 + 1  # the whole range, and one bisection


def test_a_bisection_ends_at_its_tolerance():
    wrong, calls = beyond(0.1)

    rays(wrong, torch.full((1, 1, 1, 2), 0.5), eps=0.3, queries=50, tolerance=0.25)

    assert len(calls) == 1 + 2  # 0.5 and 0.25 are wrong, and 0.25 - 0 is no more than the tolerance


def test_bisections_count_and_no_direction_is_begun_beyond_the_queries():
    wrong, calls = beyond(0.3, most=100)

    rays(wrong, torch.full((1, 1, 2, 2), 0.5), eps=0.1, queries=4, tolerance=0.01)

    # 1 of the whole range and 7 of its bisection, which ends though it has more than the queries
    assert len(calls) == 8


def test_each_answer_of_a_bisection_counts_once():
    calls = []

    def wrong(points, rows):
        calls.append(points)
        return torch.tensor([len(calls) <= 3])  # the first direction alone, and as near as the bisection goes

    rays(wrong, torch.full((1, 1, 2, 2), 0.5), eps=0.1, queries=6, tolerance=0.25)

    assert len(calls) == 6


def test_the_first_direction_is_up():
    wrong, calls = beyond(2.0)  # which no point is

    rays(wrong, torch.full((1, 1, 2, 2), 0.5), eps=0.1, queries=2)

    assert torch.equal(calls[0], torch.ones(1, 1, 2, 2))
    assert torch.equal(calls[1], torch.zeros(1, 1, 2, 2))
