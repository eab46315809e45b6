"""SignHunter: the gradient's signs, estimated from values alone (Al-Dujaili & O'Reilly, 2020)."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

Value = Callable[[Tensor], Tensor]  # (N, C, H, W) points -> (N,) what is to be raised


def sign_hunter(
    value: Value, images: Tensor, *, eps: float, queries: int, generator: torch.Generator | None = None
) -> Tensor:
    """Raise a value over the corners x + eps * s of the ball, s the signs, by flips of ever smaller blocks of them.

    The whole, halves, quarters, ..., single values; a flip that raises the value stays. Where the value is close to
    linear this finds the signs of its gradient, block by block, and needs no gradient.

    Args:
        value: what is raised. Where it is random it should be random alike in every call.
        images: (N, C, H, W) in [0, 1].
        eps: radius in pixel units.
        queries: calls of ``value``, at least one; each asks for all images at once.
        generator: of the first signs, one for all values of an image.

    Returns:
        (N, C, H, W) the best points.
    """
    first = torch.rand(len(images), 1, generator=generator, device=images.device, dtype=images.dtype) < 0.5
    signs = torch.where(first, -1.0, 1.0).to(images).repeat(1, images[0].numel())
    best = value(corner(images, signs, eps))
    for _, block in zip(range(queries - 1), blocks(signs.shape[1]), strict=False):
        flipped = signs.clone()
        flipped[:, block] *= -1
        found = value(corner(images, flipped, eps))
        signs = torch.where((found > best)[:, None], flipped, signs)
        best = torch.maximum(best, found)
    return corner(images, signs, eps)


def blocks(count: int) -> Iterator[slice]:
    """Of ``count`` values all, then halves, quarters, ..., single values; and again."""
    while True:
        parts = 1
        while parts < 2 * count:
            edges = torch.linspace(0, count, min(parts, count) + 1).round().int().tolist()
            yield from (slice(start, stop) for start, stop in pairwise(edges))
            parts *= 2


def corner(images: Tensor, signs: Tensor, radius: Tensor | float) -> Tensor:
    """Points x + r s, in [0, 1]: (N, C, H, W) by (N, C * H * W) signs and a radius, or (N,) of them."""
    wide = radius[:, None, None, None] if isinstance(radius, Tensor) else radius
    return (images + wide * signs.view_as(images)).clamp(0, 1)
