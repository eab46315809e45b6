"""What the defense asks of its parameters and of what stands beside the images, and images that are none."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fastdef._check import check_batch, check_count, check_images, check_positive, valid_images

OnInvalid = Literal["raise", "flag"]
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_parameters(numbers: Mapping[str, float], counts: Mapping[str, int], dtype: torch.dtype) -> None:
    """Refuse parameters of a defense, by name, that are out of their range, or another dtype than the loop can have.

    Raises:
        ValueError: naming the first one and what came instead.
    """
    for name, number in numbers.items():
        check_positive(number, name=name, where="ActiveDefense")
    for name, count in counts.items():
        check_count(count, name=name, where="ActiveDefense")
    if dtype not in _DTYPES:
        raise ValueError(f"ActiveDefense needs dtype float32, float16 or bfloat16, got {dtype}")


def check_ids(ids: Tensor | None, count: int) -> Tensor:
    """The ids, or 0 to N - 1 where none are given.

    Raises:
        ValueError: for anything but (N,) int64 ids from 0 up.
    """
    if ids is None:
        return torch.arange(count)
    if ids.dtype != torch.int64 or ids.shape != (count,) or bool((ids < 0).any()):
        raise ValueError(f"ActiveDefense needs ({count},) int64 ids from 0 up, got {tuple(ids.shape)} {ids.dtype}")
    return ids


def check_budgets(budgets: Tensor | None, count: int, most: int) -> list[int]:
    """The steps each image may take: its budget, and never more than ``most``.

    Raises:
        ValueError: for anything but (N,) int64 budgets from 1 up.
    """
    if budgets is None:
        return [most] * count
    if budgets.dtype != torch.int64 or budgets.shape != (count,) or bool((budgets < 1).any()):
        got = f"{tuple(budgets.shape)} {budgets.dtype}"
        raise ValueError(f"ActiveDefense needs ({count},) int64 budgets from 1 up, got {got}")
    return [min(most, budget) for budget in budgets.tolist()]


def sound(images: Tensor, on_invalid: OnInvalid, *, where: str) -> tuple[Tensor, list[bool]]:
    """The images, black where they are not finite or not in [0, 1], and which of them were.

    Raises:
        ValueError: for what is no batch of images; with "raise" for such values too; for another ``on_invalid``.
    """
    if on_invalid == "raise":
        check_images(images, where=where)
        return images, [True] * len(images)
    if on_invalid != "flag":
        raise ValueError(f"{where} needs on_invalid as 'raise' or 'flag', got {on_invalid!r}")
    check_batch(images, where=where)
    valid = valid_images(images)
    return torch.where(valid[:, None, None, None], images, 0), valid.tolist()
