"""Counter-based uniform noise: a pure function of (seed, image id, outer loop, pixel), on any device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in int64 arithmetic, so that the
same counters give the same bits on the CPU and on CUDA. That is what makes an image's answer independent of the batch
it came in, of the slot it ran in, and of everything that ran before it.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def uniform_noise(ids: Tensor, loops: Tensor, shape: tuple[int, ...], *, seed: int | Tensor, sigma: float) -> Tensor:
    """U(-sigma, sigma) for each (id, loop) pair (Active Defense, Algorithm 1, step 1).

    Args:
        ids: (N,) int64 image ids, any value from 0 to 2**63 - 1.
        loops: (N,) int64 outer loop of each, from 0 to 2**31 - 1.
        shape: shape of one image, (C, H, W).
        seed: key of the whole stream, from 0 to 2**64 - 1; a () int64 tensor where an exporter wants it as an input.
        sigma: half width of the interval, in pixel units.

    Returns:
        (N, *shape) float32 noise on the device of ``ids``; 24 random bits a value, symmetric about 0.
    """
    count = 1
    for extent in shape:
        count *= extent
    blocks = (count + 3) // 4  # Philox makes four words a counter
    counter = torch.arange(blocks, device=ids.device)
    words = _philox(
        [
            counter.expand(ids.shape[0], -1),
            (ids & _MASK)[:, None].expand(-1, blocks),
            ((ids >> 32) & _MASK)[:, None].expand(-1, blocks),
            loops[:, None].expand(-1, blocks),
        ],
        key=(seed & _MASK, (seed >> 32) & _MASK),
    )
    bits = torch.stack(words, dim=-1).flatten(1)[:, :count] >> 8
    unit = (bits.to(torch.float32) + 0.5) * 2.0**-24  # in (0, 1), never at its ends
    return (unit * (2 * sigma) - sigma).view(-1, *shape)


def _philox(counter: list[Tensor], *, key: tuple[int | Tensor, int | Tensor]) -> list[Tensor]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # int64 wraps, and keeps all 64 bits
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return [c0, c1, c2, c3]
