"""What an attack's strength does inside a model: channel statistics and fusing weight (AFA, Figs. 3 and 6)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdef import distributed
from fastdef.nn import AFA2d, fusing_weights, tap


@dataclass(frozen=True)
class Shift:
    """What a strength does inside the model, over all images.

    Attributes:
        w1: mean of the fusing weight W1, and its deviation; None for a model without one.
        mean: of each channel of the layer.
        variance: of each channel of the layer.
    """

    w1: tuple[float, float] | None
    mean: list[float]
    variance: list[float]


class Watch:
    """Runs a model on one strength's images, batch by batch, and keeps the sums of what ``Shift`` tells.

    On several ranks each has its turns of the batches.

    Args:
        model: in eval mode.
        layer: whose output is followed.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self._model, self._layer = model, layer
        self._fused = any(isinstance(module, AFA2d) for module in model.modules())
        self._w1: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._values: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> (N, classes) logits."""
        with tap(self._model, self._layer) as tapped:
            if self._fused:
                logits, w0 = fusing_weights(self._model, images)
                self._w1.append(1 - w0.mean(1).cpu())
            else:
                logits = self._model(images)
            features = tapped.features.double()
        others = [dim for dim in range(features.ndim) if dim != 1]  # none but the images, of a layer without a plane
        self._sums.append(torch.stack([features.sum(others), features.square().sum(others)]).cpu())
        self._values.append(features.numel() // features.shape[1])
        return logits

    def shift(self) -> Shift:
        """Of all images so far, on every rank."""
        mean, square = torch.stack(distributed.all_gather_shards(self._sums)).sum(0) / sum(
            distributed.all_gather_shards(self._values)
        )
        w1 = torch.cat(distributed.all_gather_shards(self._w1)) if self._fused else None
        weight = None if w1 is None else (float(w1.mean()), float(w1.std(correction=0)))
        return Shift(weight, mean.tolist(), (square - mean.square()).tolist())
