"""Standard training with the feature smoothing loss (paper 003, Section 4)."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdef import distributed
from fastdef._validate import check_positive
from fastdef.attacks import predicted
from fastdef.checkpoint import save
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.losses import smoothing_penalty, smoothness
from fastdef.nn import architecture_of, first_group, tap
from fastdef.ops import smoothing_loss
from fastdef.training.calibrate import CALIBRATED_ON
from fastdef.training.config import TrainConfig
from fastdef.training.fit import MODEL, fit
from fastdef.training.trainer import Progress
from fastdef.training.update_bn import update_bn

_VALIDATED_AT_ONCE = 128


class Smoothing:
    """L = CE + mean of max(L_F, delta) over the batch (Eq. 2), on clean images.

    Args:
        model: the classifier to train.
        layer: name of the submodule whose output is to be smooth; its raw output, before any batch norm. The first
            group if None.
        delta: below it a sample's features are left alone; 0 turns the term off: standard training.

    Raises:
        ValueError: for a delta under 0 or not finite.
    """

    def __init__(self, model: nn.Module, *, layer: str | None = None, delta: float = 0.02) -> None:
        if not 0 <= delta < math.inf:
            raise ValueError(f"Smoothing needs a delta from 0 up, got {delta}")
        self.model = model
        self.layer = first_group(model) if layer is None else layer
        self.delta = delta

    def config(self) -> dict[str, Any]:
        """Name and parameters."""
        return {"name": "smoothing", "layer": self.layer, "delta": self.delta, "model": architecture_of(self.model)}

    def parameters(self) -> Iterable[nn.Parameter]:
        """Every weight."""
        return self.model.parameters()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keeps the features of each forward."""
        with tap(self.model, self.layer) as self._tapped:
            yield

    def training_mode(self) -> None:
        """Everything trains."""
        self.model.train()

    def prepare(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        """This rank's share of the batch, as it is."""
        own = distributed.local_slice(len(images))
        return images[own], labels[own]

    def loss(self, *prepared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 2; logs the cross-entropy and the mean L_F."""
        images, labels = prepared
        classification = cross_entropy(self.model(images).float(), labels)
        penalty, feature_loss = smoothing_penalty(self._tapped.features, delta=self.delta)
        total = classification + penalty if self.delta > 0 else classification
        return total, {"cross_entropy": classification.detach(), "feature_loss": feature_loss.mean()}

    def update_bn(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """All of them."""
        update_bn(model, (images for images, _ in batches))

    @torch.no_grad()
    def validate(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """Clean accuracy, mean L_F, and mean scale-free smoothness L_F / std F."""
        right = loss = smooth = 0.0
        with tap(model, self.layer) as tapped:
            for start in range(0, len(dataset), _VALIDATED_AT_ONCE):
                images = dataset.floats(start, start + _VALIDATED_AT_ONCE)
                labels = dataset.labels[start : start + _VALIDATED_AT_ONCE]
                right += float((predicted(model(images)) == labels).sum())
                loss += float(smoothing_loss(tapped.features).sum())
                smooth += float(smoothness(tapped.features).sum())
        count = len(dataset)
        return {"accuracy": right / count, "feature_loss": loss / count, "smoothness": smooth / count}


def train_smoothing(
    model: nn.Module,
    dataset: Dataset,
    validation: Dataset,
    config: TrainConfig,
    folder: Path,
    *,
    layer: str | None = None,
    delta: float = 0.02,
    sigma: float = 0.075,
    beta: float = 80.0,
    ratio: float = 0.92,
    augment: bool = True,
    resume: bool = False,
    progress: Progress = lambda epoch, steps, figures: None,
) -> dict[str, float]:
    """Train with the smoothing loss, and write ``folder/model.safetensors`` with a calibrated Active Defense.

    Args:
        model: from :func:`fastdef.nn.build`, on the device of the data.
        dataset: what to train on.
        validation: held out; the defense's threshold is calibrated on it.
        config: hyperparameters.
        folder: where the run lives; see :func:`fit`.
        layer: the smoothed layer; the first group if None.
        delta: of the training loss.
        sigma: of the defense.
        beta: of the defense.
        ratio: of the defense's threshold to the clean validation L_F.
        augment: random crop and flip.
        resume: go on after the last epoch in ``folder``.
        progress: called at every step.

    Returns:
        The last epoch's figures.

    Raises:
        ValueError: as :func:`fit`; for a layer the model does not have, or a parameter of the defense out of its
            range, before anything is trained or written.
    """
    method = Smoothing(model, layer=layer, delta=delta)
    ActiveDefense(model, layer, sigma=sigma, beta=beta)
    check_positive(ratio, name="ratio", where="train_smoothing")

    def write(shipped: nn.Module, record: dict[str, Any]) -> None:
        defense = ActiveDefense(shipped, method.layer, sigma=sigma, beta=beta)
        defense.calibrate(validation.subset(CALIBRATED_ON).floats(0, CALIBRATED_ON), ratio=ratio)
        save(
            folder / MODEL,
            shipped,
            architecture=architecture_of(model),
            classes=dataset.classes,
            defense=defense.config(),
            training={**record, "shape": list(dataset.images.shape[1:])},
        )

    return fit(
        method,
        dataset,
        validation,
        config,
        folder,
        save=write,
        settings={"defense": {"sigma": sigma, "beta": beta, "ratio": ratio}},
        augment=augment,
        resume=resume,
        progress=progress,
    )
