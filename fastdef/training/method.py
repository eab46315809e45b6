"""What a training method is to the loop that runs it."""

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

    def trained(self) -> Iterable[nn.Parameter]:
        """The weights that learn."""
        ...

    def running(self) -> AbstractContextManager[object]:
        """Around the whole run, for hooks that a compiled step must find in place."""
        ...

    def training_mode(self) -> None:
        """Put the model's modules in the mode that a step needs."""
        ...

    def prepare(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        """What the loss takes: the batch, or what is crafted from it. Not compiled. ``seed`` is the step's own."""
        ...

    def loss(self, *prepared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """() loss, and () figures to log. Compiled as one graph where compilation is on."""
        ...

    def settle(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Estimate running statistics of an epoch's model, a copy, on some training batches; or leave them."""
        ...

    def validate(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """Figures of an epoch's model, which is in eval mode."""
        ...
