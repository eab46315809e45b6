import torch

from fastdef.attacks import sign_hunter
from fastdef.attacks._signs import blocks, corner


def linear(weights):
    return lambda points: points.flatten(1) @ weights


def test_with_enough_queries_it_finds_the_signs_of_a_linear_value():
    weights = torch.randn(25, generator=torch.Generator().manual_seed(0)).double()
    images = torch.full((3, 1, 5, 5), 0.5, dtype=torch.float64)

    found = sign_hunter(linear(weights), images, eps=0.1, queries=1 + 1 + 2 + 4 + 8 + 16 + 25)

    torch.testing.assert_close(found, images + 0.1 * weights.sign().view(1, 1, 5, 5))


def test_it_asks_as_often_as_it_may_and_only_rises():
    weights = torch.randn(64, generator=torch.Generator().manual_seed(0))
    images, asked = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), []

    def value(points):
        asked.append(linear(weights)(points))
        return asked[-1]

    found = sign_hunter(value, images, eps=0.05, queries=20, generator=torch.Generator().manual_seed(2))

    assert len(asked) == 20
    torch.testing.assert_close(linear(weights)(found), torch.stack(asked).amax(0))
    assert (found - images).abs().max() <= 0.05 + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_one_query_gives_a_random_start_back():
    images = torch.full((50, 1, 2, 2), 0.5)

    found = sign_hunter(linear(torch.ones(4)), images, eps=0.1, queries=1, generator=torch.Generator().manual_seed(0))

    signs = ((found - images) / 0.1).round().flatten(1)
    assert bool((signs == signs[:, :1]).all())
    assert 5 < int((signs[:, 0] > 0).sum()) < 45


def test_blocks_halve_until_they_are_single_values_and_begin_again():
    found = [(block.start, block.stop) for _, block in zip(range(13), blocks(5), strict=False)]

    assert found[:3] == [(0, 5), (0, 2), (2, 5)]
    assert [start for start, _ in found[3:7]] == [0, *(stop for _, stop in found[3:6])]
    assert found[6][1] == 5
    assert found[7:12] == [(k, k + 1) for k in range(5)]
    assert found[12] == (0, 5)


def test_single_values_come_once_before_it_begins_again():
    found = [(block.start, block.stop) for _, block in zip(range(16), blocks(8), strict=False)]

    assert found[7:] == [*((k, k + 1) for k in range(8)), (0, 8)]


def test_a_flip_that_raises_nothing_does_not_stay():
    image = torch.full((1, 1, 2, 2), 0.5)  # a single one
    first, last = (
        sign_hunter(
            lambda points: torch.zeros(len(points)),
            image,
            eps=0.1,
            queries=queries,
            generator=torch.Generator().manual_seed(0),
        )
        for queries in (1, 8)
    )

    assert torch.equal(first, last)


def test_a_corner_lies_where_its_signs_point_and_inside_the_range():
    images = torch.tensor([0.5, 0.95]).view(2, 1, 1, 1).repeat(1, 1, 1, 2)

    found = corner(images, torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.tensor([0.1, 0.2]))

    torch.testing.assert_close(found.flatten(1), torch.tensor([[0.6, 0.4], [1.0, 0.75]]))
