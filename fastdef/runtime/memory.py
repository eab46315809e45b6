"""How much memory a step needs, and how much a machine has: large images run fewer at once."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from fastdef.runtime.plain import plain_step

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def step_bytes(network: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Bytes that autograd keeps for a step of one image; a traced step needs fewer.

    Args:
        network: images to features.
        image: (1, C, H, W).
    """
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        plain_step(network, image)
    return sum(kept.values())


def machine_bytes() -> int:
    """Memory that this process may have: the machine's, or what its container is given of it.

    Not what is free now, on which the images run at once, and with them the rounding, would hang.
    """
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max" where there is no limit
        most = min(most, int(_CGROUP.read_text()))
    return most
