"""The torch modes of a caller, kept away from what the defense traces, compiles and runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """No inference mode, no autocast and no autograd inside, whatever the caller runs under.

    Tracing takes a gradient, and buffers made in inference mode could not be written outside of it.
    """
    # Leaving inference mode turns autograd on, so that is last.
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), torch.no_grad():
        yield
