"""How the kernels are launched, by shape and type: short lists for what was measured, one choice for all the rest.

Nothing is tuned at run time. ``python -m benchmarks.tune_kernels`` measures ``CANDIDATES`` on a GPU and prints the
entries that pay; the lists have those that were committed with such a measurement.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Whole:
    """Of the smoothing loss and its field where a program takes a sample whole.

    Attributes:
        block: values a program takes at a time.
        programs: on a multiprocessor at a time; what all of them read should fit the L2 cache.
        warps: of a program.
        stages: blocks under way at a time.
    """

    block: int = 16384
    programs: int = 1
    warps: int = 32
    stages: int = 1


@dataclass(frozen=True)
class Smoothing:
    """Of the smoothing loss and its field where a sample is split over programs.

    Attributes:
        block: values a program takes at a time; the default is 32 a thread, eight 128-bit loads in bf16.
        programs: how many a launch should have at least, where samples are large enough to be split.
        warps: of a program.
    """

    block: int = 4096
    programs: int = 1024
    warps: int = 4


@dataclass(frozen=True)
class AfaFuse:
    """Of the dual batch norm and its gradient.

    Attributes:
        tile: values a program takes; the default is 32 a thread, four 128-bit loads in bf16.
        odd_tile: the same where a row's length allows no vector load: a thread holds a value of each of many rows.
        longest_row: columns of a tile, at most.
        warps: of a program.
    """

    tile: int = 4096
    odd_tile: int = 1024
    longest_row: int = 1024
    warps: int = 4


WHOLE: dict[tuple[int, torch.dtype], Whole] = {  # by values a sample, C * H * W; of one H100
    (40960, torch.bfloat16): Whole(block=8192, programs=2, warps=16),
}
SMOOTHING: dict[tuple[int, torch.dtype], Smoothing] = {}  # by values a sample, C * H * W
AFA_FUSE: dict[tuple[int, int, torch.dtype], AfaFuse] = {}  # by channels C, plane H * W

CANDIDATES: dict[str, list[Whole] | list[Smoothing] | list[AfaFuse]] = {
    "whole": [
        Whole(block, programs, warps, stages)
        for block, programs, warps, stages in (
            (16384, 1, 32, 1),
            (8192, 1, 32, 1),
            (32768, 1, 32, 1),
            (16384, 1, 32, 3),
            (8192, 1, 32, 4),
            (8192, 2, 16, 1),
            (16384, 2, 16, 1),
            (8192, 2, 16, 3),
            (4096, 4, 8, 1),
            (8192, 4, 8, 1),
            (4096, 4, 8, 3),
            (2048, 8, 4, 1),
        )
    ],
    "smoothing": [
        Smoothing(block, programs, warps)
        for block, warps in ((2048, 4), (4096, 4), (4096, 8), (8192, 8))
        for programs in (512, 1024, 4096)
    ],
    "afa_fuse": [
        AfaFuse(tile, longest_row=row, warps=warps)
        for tile, warps in ((2048, 4), (4096, 4), (4096, 8), (8192, 8))
        for row in (256, 1024)
    ],
}


def whole(m: int, dtype: torch.dtype) -> Whole:
    """For samples of ``m`` values, each taken whole."""
    return WHOLE.get((m, dtype), Whole())


def smoothing(m: int, dtype: torch.dtype) -> Smoothing:
    """For samples of ``m`` values."""
    return SMOOTHING.get((m, dtype), Smoothing())


def afa_fuse(channels: int, plane: int, dtype: torch.dtype) -> AfaFuse:
    """For features of ``channels`` channels on planes of ``plane`` pixels."""
    return AFA_FUSE.get((channels, plane, dtype), AfaFuse())
