import numpy as np
import pytest
import torch

from fastdef.defense.noise import _philox, uniform_noise


# The known answers that the Random123 library publishes for philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    words = _philox([torch.tensor([c]) for c in counter], key=key)

    assert [int(w) for w in words] == answer


def _noise(ids, loops, **options):
    return uniform_noise(torch.tensor(ids), torch.tensor(loops), (3, 5, 7), **{"seed": 1, "sigma": 0.1, **options})


def test_an_image_gets_the_same_noise_whoever_is_beside_it():
    alone, among = _noise([7], [2]), _noise([3, 7, 1 << 40], [0, 2, 1])

    torch.testing.assert_close(among[1], alone[0], rtol=0, atol=0)


@pytest.mark.parametrize("other", [([8], [2], 1), ([7], [3], 1), ([7], [2], 2), ([7 + (1 << 32)], [2], 1)])
def test_another_id_loop_or_seed_gives_other_noise(other):
    ids, loops, seed = other

    assert not torch.equal(_noise(ids, loops, seed=seed), _noise([7], [2]))


def test_noise_is_uniform_inside_its_bounds():
    noise = uniform_noise(torch.arange(500), torch.zeros(500, dtype=torch.int64), (1, 20, 20), seed=3, sigma=0.075)

    assert noise.abs().max() < 0.075
    counts, _ = np.histogram(noise.numpy(), bins=20, range=(-0.075, 0.075))
    expected = noise.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees, 99.9 %
