"""What a training method is to the loop that runs it.

On several ranks each has the joint batch, prepares its share of it, see :func:`fastdef.distributed.local_slice`, and
takes the loss of that share. Losses and figures are means over images, so that their mean over ranks is that of the
joint batch.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from fastdef.data import Dataset


class Method(Protocol):
    """Turns a batch into a loss.

    Attributes:
        model: what is trained; its state dict is what a run saves.
    """

    model: nn.Module

    def config(self) -> dict[str, Any]:
        """Name and parameters, JSON-able; a run resumes only with the same."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """The weights that learn."""
        ...

    def running(self) -> AbstractContextManager[object]:
        """Around the whole run, for hooks that a compiled step must find in place."""
        ...

    def training_mode(self) -> None:
        """Put the model's modules in the mode that a step needs."""
        ...

    def prepare(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        """What the loss takes: this rank's share of the joint batch, or what is crafted from it. Not compiled.

        ``seed`` is the step's own; what it decides does not depend on the number of ranks.
        """
        ...

    def loss(self, *prepared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """() loss, and () figures to log. Compiled as one graph where compilation is on."""
        ...

    def update_bn(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Estimate running statistics of an epoch's model, a copy, on its shares of some batches; or leave them."""
        ...

    def validate(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """Figures of an epoch's model, which is in eval mode."""
        ...
