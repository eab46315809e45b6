"""Any training method, with the feature smoothing loss added to its own."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastdef._validate import check_positive
from fastdef.data import Dataset
from fastdef.losses import smoothing_penalty
from fastdef.nn import first_group, tap
from fastdef.training.method import Method


class Smoothed:
    """L + mean of max(L_F, delta) over all images of a step, so that Active Defense may run on what is trained.

    Args:
        method: gives L by one forward of its model.
        layer: whose output is smoothed; the first group's if None.
        delta: below it a sample's features are left alone.

    Raises:
        ValueError: for a delta that is not positive.
    """

    def __init__(self, method: Method, *, layer: str | None = None, delta: float = 0.02) -> None:
        check_positive(delta, name="delta", where="Smoothed")
        self.method, self.model = method, method.model
        self.layer, self.delta = first_group(method.model) if layer is None else layer, delta

    def config(self) -> dict[str, Any]:
        """The method's, and the two parameters."""
        return {**self.method.config(), "smoothing": {"layer": self.layer, "delta": self.delta}}

    def parameters(self) -> Iterable[nn.Parameter]:
        """What the method trains."""
        return self.method.parameters()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps the features of each forward."""
        with self.method.running(), tap(self.model, self.layer) as self._tapped:
            yield

    def training_mode(self) -> None:
        """The method's."""
        self.method.training_mode()

    def prepare(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        """The method's."""
        return self.method.prepare(images, labels, seed=seed)

    def loss(self, *prepared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's and the penalty; logs the mean L_F too."""
        loss, logged = self.method.loss(*prepared)
        penalty, feature_loss = smoothing_penalty(self._tapped.features, delta=self.delta)
        return loss + penalty, {**logged, "feature_loss": feature_loss.mean()}

    def update_bn(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """The method's."""
        self.method.update_bn(model, batches)

    def validate(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """The method's."""
        return self.method.validate(model, dataset)
