"""The training loop: every method, one loop."""

import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fastdef import distributed
from fastdef.checkpoint import check_same
from fastdef.data import Batches, Dataset, RandomCropFlip
from fastdef.io import atomic_write, make_folder
from fastdef.training.config import TrainConfig
from fastdef.training.method import Method
from fastdef.training.state import FILE, State, gather, scatter
from fastdef.training.trainer import Progress, Trainer, check_finite

LOG = "log.jsonl"
MODEL = "model.safetensors"


def fit(
    method: Method,
    dataset: Dataset,
    validation: Dataset,
    config: TrainConfig,
    folder: Path,
    *,
    save: Callable[[nn.Module, dict[str, Any]], object],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    augment: bool = True,
    resume: bool = False,
    progress: Progress = lambda epoch, steps, figures: None,
) -> dict[str, float]:
    """Train, validate each epoch, and keep in ``folder`` what is needed to go on after any epoch.

    Files: ``state.safetensors``, ``log.jsonl`` (a line an epoch), and ``model.safetensors``, which ``save`` writes.

    On several ranks all call this with the same arguments, and train what one would, to rounding: a batch is that of
    all ranks together. Rank 0 validates, saves and writes; the others wait for it. A run may go on with another number
    of ranks, since what decides it is the joint batch.

    Args:
        method: turns batches into losses.
        dataset: what to train on, on the model's device.
        validation: what to look at after each epoch.
        config: hyperparameters.
        folder: where the run lives.
        save: called after each epoch with the model to be shipped, and its figures; on rank 0 alone. Also where a
            finished run has no ``model.safetensors`` any more: the same is made again from the state.
        settings: by topic, JSON-able, what else ``save`` depends on; a run resumes only with the same.
        augment: random crop and, where the data allow it, flip.
        resume: go on after the last epoch in ``folder``, bit for bit on a CPU.
        progress: called at every 20th step, and after an epoch with its figures.

    Returns:
        The last epoch's figures.

    Raises:
        ValueError: if the folder holds a run and ``resume`` is off, or holds none or another and it is on; if a loss
            is not finite, with the last epoch's files intact; if a file cannot be written; if a batch cannot be
            shared evenly among the ranks, or these were given different data or settings.
    """
    distributed.local_slice(min(config.batch_size, len(dataset)))  # refused before anything is written
    data = {**_described(dataset, validation), "augment": augment}
    recorded = {"method": method.config(), "hyper": asdict(config), "data": data, **(settings or {})}
    _agree(recorded)
    distributed.broadcast(method.model.state_dict().values())
    trainer = Trainer(method, config)
    policy = RandomCropFlip(flip=dataset.flip) if augment else None
    batches = Batches(
        dataset, config.batch_size, augment=policy, seed=config.seed, drop_last=len(dataset) >= config.batch_size
    )
    state = distributed.on_rank0(lambda: _begin(folder, recorded, resume))
    if state.tensors:
        scatter(state, method.model, trainer.optimizer, trainer.averages)
    figures = state.figures

    def write(model: nn.Module, epochs: int, figures: dict[str, float]) -> None:
        save(model, {"config": recorded, "epochs": epochs, "figures": figures})

    def keep(epoch: int, model: nn.Module, figures: dict[str, float], seconds: float) -> dict[str, float]:
        figures = figures | method.validate(model, validation)
        check_finite(figures, epoch)
        # The state comes last: where one of these fails, the run goes on from the epoch before and repeats them.
        write(model, epoch + 1, figures)
        _log(folder, {"epoch": epoch + 1, **figures, "seconds": seconds})
        State(epoch + 1, recorded, figures, gather(method.model, trainer.optimizer, trainer.averages)).write(folder)
        return figures

    with method.running():
        for epoch in range(state.epochs, config.epochs):
            start = time.perf_counter()
            figures = trainer.epoch(epoch, batches, progress)
            seconds = time.perf_counter() - start
            model = trainer.eval_model(epoch, batches)
            figures = distributed.on_rank0(partial(keep, epoch, model, figures, seconds))
            progress(epoch, len(batches), {**figures, "seconds": seconds})
        if state.epochs == config.epochs and not distributed.on_rank0((folder / MODEL).is_file):
            model = trainer.eval_model(config.epochs - 1, batches)
            distributed.on_rank0(partial(write, model, config.epochs, figures))
    return figures


def _described(dataset: Dataset, validation: Dataset) -> dict[str, Any]:
    """All of the data that a run depends on."""
    return {
        "name": dataset.name,
        "split": dataset.split,
        "images": len(dataset),
        "shape": list(dataset.images.shape[1:]),
        "flip": dataset.flip,
        "classes": {str(number): name for number, name in enumerate(dataset.classes)},  # a refusal names the one
        "sha256": dataset.digest(),
        "validation_sha256": validation.digest(),
    }


def _agree(config: dict[str, Mapping[str, Any]]) -> None:
    """Refuse to train with processes that were given different things, such as the data of their own machines."""
    first, *others = distributed.all_gather_object(config)
    for other, topic in itertools.product(others, first):
        for name, value in first[topic].items():
            if other[topic].get(name) != value:
                got = f"{value} and {other[topic].get(name)}"
                raise ValueError(f"processes of one run need the same {topic}.{name}, got {got}")


def _begin(folder: Path, config: dict[str, Any], resume: bool) -> State:
    """What to go on from; without tensors at the beginning of a run."""
    if resume:
        state = State.read(folder)
        check_same(config, state.config)
        _forget_after(folder, state.epochs)
        return state
    if (folder / FILE).exists():
        raise ValueError(f"{folder} holds a run already; resume it, or give another folder")
    make_folder(folder)
    _forget_after(folder, 0)
    return State(0, config, {}, {})


def _log(folder: Path, line: dict[str, float]) -> None:
    try:
        with (folder / LOG).open("a") as log:
            log.write(json.dumps(line) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {folder / LOG}: {error.strerror}") from error


def _forget_after(folder: Path, epochs: int) -> None:
    """Keep the first lines of the log: those of epochs that are done, and not of one that was cut short."""
    log = folder / LOG
    if log.is_file():
        with atomic_write(log) as temporary:
            temporary.write_text("".join(log.read_text().splitlines(keepends=True)[:epochs]))
