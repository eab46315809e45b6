"""The features of one layer, kept from the same forward that gives the logits: what training needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fastdef.nn._layers import check_features, find_layer, hooked


class Tapped:
    """What ``tap`` yields: the output of the layer in the model's latest forward."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._output: object = None

    @property
    def features(self) -> Tensor:
        """(N, ...) output of the layer, part of the autograd graph of that forward.

        Raises:
            ValueError: if no forward has reached the layer inside the ``with``, or its output is not one (N, ...)
                tensor.
        """
        if self._output is None:
            raise ValueError(
                f"tap needs a forward of the model that reaches {self._layer!r} inside the with, and there was none; "
                "a model that was compiled before the tap does not see it"
            )
        return check_features(self._output, self._layer, where="tap")

    def keep(self, output: object) -> None:
        """Hold ``output`` until the next forward."""
        self._output = output


@contextmanager
def tap(model: nn.Module, layer: str) -> Iterator[Tapped]:
    """Keep the output of ``layer`` from every forward of ``model`` inside the ``with``; the latest one is there.

    A compiled step works with ``fullgraph=True`` if the ``with`` is around the compiled calls, not inside them::

        step = torch.compile(step, fullgraph=True)  # calls model(images), then reads tapped.features
        with tap(model, "block1") as tapped:
            for images, labels in batches:
                step(model, tapped, images, labels)

    Args:
        model: any classifier.
        layer: dotted name of a submodule, such as ``"block1"``.

    Raises:
        ValueError: if ``model`` has no such layer.
    """
    tapped = Tapped(layer)

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        tapped.keep(output)

    with hooked(find_layer(model, layer, where="tap"), keep):
        try:
            yield tapped
        finally:
            tapped.keep(None)  # the features hold a whole autograd graph
