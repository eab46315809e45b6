"""Whether a model file and a data set are of one task."""

import os

import torch

from fastdef.checkpoint._file import Checkpoint, load
from fastdef.data import Dataset


def load_for(
    path: str | os.PathLike[str], dataset: Dataset, *, device: str | torch.device = "cpu", labels: bool = True
) -> Checkpoint:
    """``load`` a model file that takes a data set's images, and whose answers its labels can judge.

    Args:
        path: a file that ``save`` wrote.
        dataset: what the model is to answer.
        device: where the model goes.
        labels: whether the labels are needed; without, only the images have to fit.

    Raises:
        ValueError: as ``load`` does; for images of other channels, a label that the model has no class for, or its
            classes in another order, by which every count would be wrong.
    """
    checkpoint = load(path, device=device)
    channels, given = checkpoint.architecture["in_channels"], dataset.images.shape[1]
    if given != channels:
        raise ValueError(f"{path} needs images of {channels} channels, got {given}")
    if labels:
        _check_classes(path, checkpoint.classes, dataset)
    return checkpoint


def _check_classes(path: str | os.PathLike[str], classes: tuple[str, ...], dataset: Dataset) -> None:
    last = int(dataset.labels.max()) if len(dataset) else 0
    if last >= len(classes):
        raise ValueError(f"{path} needs labels of its {len(classes)} classes, got {dataset.name}'s {last}")
    given = dataset.classes
    if given != classes and sorted(given) == sorted(classes):
        place = next(place for place in range(len(given)) if given[place] != classes[place])
        raise ValueError(
            f"{path} needs its classes in its own order: number {place} is {classes[place]!r}, got {given[place]!r}"
        )
