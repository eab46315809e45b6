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
