import pytest
import torch

from fastdef.evaluation.adaptive.noise_seeds import KnownSeeds, NoiseSeeds, SeedStream, noise_seeds

IDS = torch.tensor([3, 9])


def test_an_image_s_draws_come_one_after_the_other():
    first, second = (noise_seeds(IDS[k : k + 1], range(3), SeedStream.EVALUATION) for k in range(2))

    assert noise_seeds(IDS, range(3), SeedStream.EVALUATION).tolist() == [*first.tolist(), *second.tolist()]


def test_an_id_is_made_of_image_draw_and_stream():
    """Ids are what results were made with, and a resumed evaluation goes on with: they stay."""
    (found,) = noise_seeds(torch.tensor([5]), range(2, 3), SeedStream.ATTACK).tolist()

    assert found == 5 + 2 * 2**24 + 3 * 2**56


def test_no_image_draw_and_stream_have_an_id_in_common():
    ids, draws = torch.tensor([0, 1, 2**24 - 1]), [range(2), range(2**32 - 1, 2**32)]

    found = [noise_seeds(ids, some, stream) for stream in SeedStream for some in draws]

    assert len(torch.cat(found).unique()) == len(torch.cat(found)) == 3 * 3 * len(SeedStream)


def test_the_streams_are_seven():
    assert [*SeedStream] == [1, 2, 3, 4, 5, 6, 7]


def test_the_first_ids_are_those_of_the_whole_batch_s_first_draw():
    seeds = NoiseSeeds(IDS, SeedStream.QUERIES)

    assert torch.equal(seeds.first(), noise_seeds(IDS, range(1), SeedStream.QUERIES))
    assert torch.equal(seeds.first(), seeds.next(torch.tensor([0, 1]), 1))


def test_the_ids_of_a_stream_go_on_for_the_rows_that_are_asked_for():
    seeds = NoiseSeeds(IDS, SeedStream.ATTACK)

    found = [seeds.next(torch.tensor([0, 1]), 2), seeds.next(torch.tensor([1]), 2), seeds.next(torch.tensor([0]), 2)]

    expected = [(IDS, range(2)), (IDS[1:], range(2, 4)), (IDS[:1], range(4, 6))]
    assert [ids.tolist() for ids in found] == [
        noise_seeds(ids, draws, SeedStream.ATTACK).tolist() for ids, draws in expected
    ]


def test_no_draw_comes_twice_though_their_number_changes():
    seeds, rows = NoiseSeeds(IDS, SeedStream.ATTACK), torch.tensor([0, 1])

    found = torch.cat([seeds.next(rows, draws) for draws in (4, 1, 3, 2)])

    assert len(found.unique()) == len(found) == 20


@pytest.mark.parametrize("times", [1, 3])
def test_who_knows_the_noise_has_the_first_draws_every_time(times):
    seeds = KnownSeeds(IDS, SeedStream.EVALUATION)

    found = [seeds.next(torch.tensor([1]), 2) for _ in range(times)]

    assert all(torch.equal(ids, noise_seeds(IDS[1:], range(2), SeedStream.EVALUATION)) for ids in found)
