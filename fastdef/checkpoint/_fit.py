"""Whether a model file and a data set are of one task."""

import os

import torch
from torch import nn

from fastdef.checkpoint._file import Checkpoint, load
from fastdef.data import Dataset, numbering
from fastdef.nn import AFA2d, MultiBatchNorm2d


def load_for(
    path: str | os.PathLike[str],
    dataset: Dataset,
    *,
    device: str | torch.device = "cpu",
    labels: bool = True,
    parts: bool = False,
    source: str | None = None,
) -> Checkpoint:
    """``load`` a model file that takes a data set's images, and whose answers its labels can judge.

    Args:
        path: a file that ``save`` wrote.
        dataset: what the model is to answer.
        device: where the model goes.
        labels: whether the labels are needed; without, only the images have to fit.
        parts: take a model of AFA's stage I too, of which every branch answers by itself.
        source: code to build the network with, as ``load`` takes it.

    Raises:
        ValueError: as ``load`` does; for images of another shape than the model was trained on, a label that it has no
            class for, or one of its classes under another number, by which every count would be wrong.
    """
    checkpoint = load(path, device=device, source=source)
    check_images(path, checkpoint, dataset)
    if not parts:
        check_whole(path, checkpoint.model)
    if labels:
        check_classes(path, checkpoint.classes, dataset)
    return checkpoint


def check_images(path: str | os.PathLike[str], checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Refuse a data set whose images have another shape than those that the model takes.

    Raises:
        ValueError: naming the channels or the shape.
    """
    channels, given = checkpoint.architecture["in_channels"], list(dataset.images.shape[1:])
    if given[0] != channels:
        raise ValueError(f"{path} needs images of {channels} channels, got {given[0]}")
    trained = (checkpoint.training or {}).get("shape")
    if trained is not None and given != trained:
        raise ValueError(f"{path} needs images of the shape it was trained on, {trained}, got {given}")


def check_whole(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Refuse a model of AFA's stage I where one answer is wanted: it has one for each branch.

    Raises:
        ValueError: naming the stage whose model has one.
    """
    modules = list(model.modules())
    branched = any(isinstance(module, MultiBatchNorm2d) for module in modules)
    if branched and not any(isinstance(module, AFA2d) for module in modules):
        raise ValueError(f"{path} is of AFA's stage I, whose branches answer one by one; take the model of stage II")


def check_classes(path: str | os.PathLike[str], classes: tuple[str, ...], dataset: Dataset) -> None:
    """Refuse a data set whose labels mean something else than a model's answers; other names for them are taken.

    Raises:
        ValueError: for a label that the model has no class for, or one of its classes under another number,
            however its name is written.
    """
    last = int(dataset.labels.max()) if len(dataset) else 0
    if last >= len(classes):
        raise ValueError(f"{path} needs labels of its {len(classes)} classes, got {dataset.name}'s {last}")
    own = numbering(classes)
    for number, name in enumerate(dataset.classes):
        if own(name) not in (None, number):
            needed = f"its classes under its own numbers: {name!r} is {own(name)}"
            raise ValueError(f"{path} needs {needed}, got {number}; see --class-order for folders")
