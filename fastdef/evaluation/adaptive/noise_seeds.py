"""Ids for the randomness of a defense: every draw of every image has its own, and no attacker sees the evaluation's."""

from enum import IntEnum

import torch
from torch import Tensor


class SeedStream(IntEnum):
    """Who draws."""

    EVALUATION = 1  # the scores that are reported
    CHOICE = 2  # which of several candidates is kept
    ATTACK = 3
    QUERIES = 4  # of black boxes
    PLANT = 5
    ALIGNMENT = 6  # gradients against finite differences
    PROBE = 7  # what a target is known by


_IMAGE_BITS, _DRAW_BITS = 24, 32


def noise_seeds(ids: Tensor, draws: range, stream: SeedStream) -> Tensor:
    """(N,) places in the data set -> (N * len(draws),) ids, an image's draws one after the other."""
    which = torch.arange(draws.start, draws.stop) << _IMAGE_BITS
    return (ids[:, None] + which + (int(stream) << (_IMAGE_BITS + _DRAW_BITS))).flatten()


class NoiseSeeds:
    """A stream that goes on: every call has draws that no call before it had."""

    def __init__(self, ids: Tensor, stream: SeedStream) -> None:
        self._ids = ids.cpu()
        self._stream = stream
        self._drawn = 0

    def first(self) -> Tensor:
        """(N,) ids of the whole batch's very first draw."""
        return noise_seeds(self._ids, range(1), self._stream)

    def next(self, rows: Tensor, draws: int) -> Tensor:
        """(n * draws,) ids of the next ``draws`` draws of the batch's ``rows``."""
        start, self._drawn = self._drawn, self._drawn + draws
        return noise_seeds(self._ids[rows.cpu()], range(start, self._drawn), self._stream)


class KnownSeeds(NoiseSeeds):
    """A stream that gives the same draws whenever it is asked: an attacker that knows the noise to come."""

    def next(self, rows: Tensor, draws: int) -> Tensor:
        """(n * draws,) ids of the first ``draws`` draws of the batch's ``rows``."""
        return noise_seeds(self._ids[rows.cpu()], range(draws), self._stream)
