"""Both stages of AFA, and the plain methods that it is held against."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdef.checkpoint import save
from fastdef.data import Dataset
from fastdef.losses import PGDAT
from fastdef.nn import architecture_of, convert_to_afa, convert_to_multi_bn, keep_branch
from fastdef.training.branches import Branches, SequentialBranches
from fastdef.training.config import TrainConfig
from fastdef.training.fit import MODEL, fit
from fastdef.training.fusing import Fusing
from fastdef.training.method import Method
from fastdef.training.smoothed import Smoothed
from fastdef.training.trainer import Progress


def train_branches(
    model: nn.Module,
    dataset: Dataset,
    validation: Dataset,
    config: TrainConfig,
    folder: Path,
    *,
    recipe: PGDAT,
    strengths: Sequence[float],
    sequential: bool = False,
    smoothed: dict[str, Any] | None = None,
    augment: bool = True,
    resume: bool = False,
    progress: Progress = lambda epoch, steps, figures: None,
) -> dict[str, float]:
    """Stage I: train a branch for each strength, and write ``folder/model.safetensors``.

    With one strength this is plain adversarial training, and with the one strength 0 standard training; what is
    written is then a plain model.

    Args:
        model: from :func:`fastdef.nn.build`, not lifted yet, on the device of the data; is lifted here.
        dataset: what to train on.
        validation: held out.
        config: hyperparameters; without an average of the weights, whose branches would have no statistics.
        folder: where the run lives; see :func:`fit`.
        recipe: the adversarial loss.
        strengths: of the branches, in pixel units.
        sequential: Algorithm 1 as written, one branch after the other, in place of all at once.
        smoothed: ``layer`` and ``delta`` of a feature smoothing loss to be added; none if None.
        augment: random crop and flip.
        resume: go on after the last epoch in ``folder``.
        progress: called at every step.

    Returns:
        The last epoch's figures.

    Raises:
        ValueError: as :func:`fit`; for an average, or ``sequential`` with what needs a single forward.
    """
    if config.ema:
        raise ValueError(f"train_branches needs ema 0: averaged weights have no statistics, got {config.ema}")
    if sequential and (config.compile or smoothed):
        raise ValueError("one branch after the other is neither compiled nor smoothed; leave one of them out")
    convert_to_multi_bn(model, len(strengths))
    kind = SequentialBranches if sequential else Branches
    method: Method = kind(model, recipe, strengths, compile=config.compile)
    if smoothed is not None:
        method = Smoothed(method, **smoothed)

    def write(shipped: nn.Module, record: dict[str, Any]) -> None:
        _save(folder, keep_branch(shipped, 0) if len(strengths) == 1 else shipped, dataset, record)

    return fit(
        method,
        dataset,
        validation,
        config,
        folder,
        save=write,
        augment=augment,
        resume=resume,
        progress=progress,
    )


def train_fusing(
    model: nn.Module,
    dataset: Dataset,
    validation: Dataset,
    config: TrainConfig,
    folder: Path,
    *,
    strengths: Sequence[float],
    attack_steps: int = PGDAT.steps,
    supervision: float = 0.0,
    placement: str = "shared",
    hidden: int = 32,
    augment: bool = True,
    resume: bool = False,
    progress: Progress = lambda epoch, steps, figures: None,
) -> dict[str, float]:
    """Stage II: keep the outermost branches, train what mixes them, and write ``folder/model.safetensors``.

    Args:
        model: of stage I; is converted here.
        dataset: what to train on.
        validation: held out.
        config: hyperparameters.
        folder: where the run lives; see :func:`fit`.
        strengths: that images are attacked with, in pixel units.
        attack_steps: of PGD.
        supervision: weight of a term that tells the generators the strengths, see :class:`Fusing`.
        placement: of the weight generator, see :func:`fastdef.nn.convert_to_afa`.
        hidden: its width.
        augment: random crop and flip.
        resume: go on after the last epoch in ``folder``.
        progress: called at every step.

    Returns:
        The last epoch's figures.

    Raises:
        ValueError: as :func:`fit`; for a model that is not of stage I, or an average.
    """
    if config.ema:
        raise ValueError(f"train_fusing needs ema 0: averaged weights have no statistics, got {config.ema}")
    # A stem by name would have to be given; layers of the networks here all start at conv1.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of the generators: the same whether stage I ran before or was resumed
        convert_to_afa(model, placement=placement, hidden=hidden)
    method = Fusing(model, strengths, attack_steps=attack_steps, supervision=supervision, compile=config.compile)
    return fit(
        method,
        dataset,
        validation,
        config,
        folder,
        save=lambda shipped, record: _save(folder, shipped, dataset, record),
        augment=augment,
        resume=resume,
        progress=progress,
    )


def _save(folder: Path, model: nn.Module, dataset: Dataset, record: dict[str, Any]) -> None:
    save(
        folder / MODEL,
        model,
        architecture=architecture_of(model),
        classes=dataset.classes,
        training={**record, "shape": list(dataset.images.shape[1:])},
    )
