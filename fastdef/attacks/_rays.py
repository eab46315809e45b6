"""RayS: a decision-based attack that searches directions of signs (Chen & Gu, 2020)."""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from fastdef.attacks._signs import blocks, corner

Wrong = Callable[[Tensor, Tensor], Tensor]  # (n, C, H, W) points and their (n,) rows -> (n,) bool: answered wrong


def rays(wrong: Wrong, images: Tensor, *, eps: float, queries: int, tolerance: float = 1e-3) -> Tensor:
    """Find, from answers alone, the direction d of signs in which x + r d is first answered wrong.

    Blocks of signs are flipped, halves first, then quarters, and so on; a flip that is wrong at the best radius so far
    is kept and its radius found by bisection. Written here and not taken from a library because those there are assume
    that the same point is answered the same way twice, and stop or never end where a defense draws noise.

    Args:
        wrong: the only thing that is asked. Where answers are random, by a majority of draws.
        images: (N, C, H, W) in [0, 1], answered right.
        eps: an image is through when its radius is this small.
        queries: calls of ``wrong`` after which an image begins no other direction; a bisection under way ends.
        tolerance: of the bisection.

    Returns:
        (N, C, H, W) points at most ``eps`` from the images, in the best direction found.
    """
    count = images[0].numel()
    signs = torch.ones(len(images), count, dtype=images.dtype, device=images.device)
    radius = torch.ones_like(signs[:, 0])  # of the whole range: nothing is known yet
    used = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for block in chain([slice(0, 0)], blocks(count)):
        (rows,) = torch.nonzero((radius > eps) & (used < queries), as_tuple=True)
        if not len(rows):
            break
        flipped = signs[rows]
        flipped[:, block] *= -1
        hit = wrong(corner(images[rows], flipped, radius[rows]), rows)
        used[rows] += 1
        rows, flipped = rows[hit], flipped[hit]
        if len(rows):
            signs[rows] = flipped
            radius[rows] = _bisect(wrong, images, rows, flipped, radius[rows], used, tolerance)
    return corner(images, signs, torch.full_like(radius, eps))


def _bisect(
    wrong: Wrong, images: Tensor, rows: Tensor, signs: Tensor, high: Tensor, used: Tensor, tolerance: float
) -> Tensor:
    low = torch.zeros_like(high)
    while bool((high - low > tolerance).any()):
        middle = (low + high) / 2
        hit = wrong(corner(images[rows], signs, middle), rows)
        used[rows] += 1
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return high
