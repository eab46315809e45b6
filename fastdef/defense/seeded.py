"""The noise of one defense: its seed, and the ids of images that are given none."""

import secrets
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fastdef.defense.noise import uniform_noise
from fastdef.defense.parameters import check_ids, check_seed


class SeededNoise:
    """Noise by seed and id. A copy of one that was drawn from the system draws anew, or it would repeat the noise.

    Args:
        seed: None draws one from the system; ids that are not given are then such that no image had before.

    Raises:
        ValueError: for a seed that is none.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = secrets.randbits(63) if seed is None else check_seed(seed)
        self._fresh = count(secrets.randbits(62)) if seed is None else None

    def __getstate__(self) -> dict[str, int | None]:
        return {"seed": None if self._fresh is not None else self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def numbers(self) -> Iterator[int]:
        """The ids of images as they come: from 0 up, or fresh ones."""
        return count() if self._fresh is None else self._fresh

    def ids(self, given: Tensor | None, length: int) -> Tensor:
        """(length,) int64: those given, or as of :meth:`numbers`.

        Raises:
            ValueError: for ids that do not fit.
        """
        if given is None and self._fresh is not None:
            return torch.tensor([next(self._fresh) for _ in range(length)])
        return check_ids(given, length)

    def __call__(self, ids: Tensor, loop: int, shape: torch.Size, *, sigma: float) -> Tensor:
        """(N, *shape) noise of an outer loop, on the device of the (N,) ids."""
        return uniform_noise(ids, torch.full_like(ids, loop), shape, seed=self.seed, sigma=sigma)
