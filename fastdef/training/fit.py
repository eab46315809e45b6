"""The training loop: every method, one loop."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.data import Batches, Dataset, RandomCropFlip
from fastdef.training.hyper import Hyper
from fastdef.training.method import Method
from fastdef.training.state import FILE, State, check_same, gather, scatter

Progress = Callable[[int, int, dict[str, float]], object]  # epoch, steps done in it, figures


def fit(
    method: Method,
    dataset: Dataset,
    validation: Dataset,
    hyper: Hyper,
    folder: Path,
    *,
    save: Callable[[nn.Module, dict[str, Any]], object],
    augment: bool = True,
    resume: bool = False,
    progress: Progress = lambda epoch, steps, figures: None,
) -> dict[str, float]:
    """Train, validate each epoch, and keep in ``folder`` what is needed to go on after any epoch.

    Files: ``state.safetensors``, ``log.jsonl`` (a line an epoch), and whatever ``save`` writes.

    Args:
        method: turns batches into losses.
        dataset: what to train on, on the model's device.
        validation: what to look at after each epoch.
        hyper: hyperparameters.
        folder: where the run lives.
        save: called after each epoch with the model to be shipped, and its figures.
        augment: random crop and, where the data allow it, flip.
        resume: go on after the last epoch in ``folder``, bit for bit on a CPU.
        progress: called at every step.

    Returns:
        The last epoch's figures.

    Raises:
        ValueError: if the folder holds a run and ``resume`` is off, or holds none or another and it is on; if a loss
            is not finite, with the last epoch's files intact; if a file cannot be written.
    """
    config = {
        "method": method.config(),
        "hyper": asdict(hyper),
        "data": {"name": dataset.name, "split": dataset.split, "images": len(dataset), "augment": augment},
    }
    run = _Run(method, hyper)
    begin = _begin(folder, config, run, resume)
    policy = RandomCropFlip(flip=dataset.flip) if augment else None
    batches = Batches(
        dataset, hyper.batch_size, augment=policy, seed=hyper.seed, drop_last=len(dataset) >= hyper.batch_size
    )
    figures: dict[str, float] = {}
    with method.running():
        for epoch in range(begin, hyper.epochs):
            start = time.perf_counter()
            figures = run.epoch(epoch, batches, progress)
            figures["seconds"] = time.perf_counter() - start
            shipped = run.shipped()
            figures |= method.validate(shipped, validation)
            State(epoch + 1, config, gather(method.model, run.optimizer, run.average)).write(folder)
            save(shipped, {"config": config, "epochs": epoch + 1, "figures": figures})
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({"epoch": epoch + 1, **figures}) + "\n")
            progress(epoch, len(batches), figures)
    return figures


def _begin(folder: Path, config: dict[str, Any], run: "_Run", resume: bool) -> int:
    if not resume:
        if (folder / FILE).exists():
            raise ValueError(f"{folder} holds a run already; resume it, or give another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the folder {folder}: {error.strerror}") from error
        return 0
    state = State.read(folder)
    check_same(config, state.config)
    scatter(state.tensors, run.method.model, run.optimizer, run.average)
    return state.epochs


class _Run:
    """Model, optimizer and average of one run."""

    def __init__(self, method: Method, hyper: Hyper) -> None:
        self.method = method
        self.hyper = hyper
        method.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            list(method.trained()),
            lr=hyper.lr,
            momentum=hyper.momentum,
            nesterov=hyper.momentum > 0,
            weight_decay=hyper.weight_decay,
        )
        self.average: dict[str, Tensor] = {}
        if hyper.ema:
            self.average = {name: value.clone() for name, value in method.model.state_dict().items()}
        self._loss = torch.compile(method.loss, fullgraph=True) if hyper.compile else method.loss

    def epoch(self, epoch: int, batches: Batches, progress: Progress) -> dict[str, float]:
        """Once through the data; returns the mean of what the method logs."""
        sums: dict[str, Tensor] = {}
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            number = epoch * len(batches) + step
            for group in self.optimizer.param_groups:
                group["lr"] = self.hyper.rate(number, len(batches))
            logged = self._step(images, labels, number)
            for name, value in logged.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            if step % 20 == 19 or step == len(batches) - 1:  # each look waits for the device
                figures = {name: float(value) / (step + 1) for name, value in sums.items()}
                if not all(value - value == 0 for value in figures.values()):
                    raise ValueError(
                        f"training stopped: the loss of epoch {epoch + 1} is not finite; the files are of the epoch "
                        "before, and a smaller learning rate may help"
                    )
                progress(epoch, step + 1, figures)
        return {f"train_{name}": float(value) / len(batches) for name, value in sums.items()}

    def shipped(self) -> nn.Module:
        """The model to validate and save, in eval mode: the average where there is one."""
        if not self.average:
            return self.method.model.eval()
        model = copy.deepcopy(self.method.model)
        model.load_state_dict(self.average)
        return model.eval()

    def _step(self, images: Tensor, labels: Tensor, number: int) -> dict[str, Tensor]:
        hyper = self.hyper
        images = images.contiguous(memory_format=torch.channels_last)
        prepared = self.method.prepare(images, labels, seed=hyper.seed * 1_000_003 + number)
        self.method.training_mode()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=hyper.bf16):
            loss, logged = self._loss(*prepared)
        self.optimizer.zero_grad()
        loss.backward()
        if hyper.clip:
            nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], hyper.clip)
        self.optimizer.step()
        self._average()
        return {"loss": loss.detach(), **logged}

    @torch.no_grad()
    def _average(self) -> None:
        """Weights are averaged; statistics and counters are not averages of anything, and are copied."""
        weights = {name for name, _ in self.method.model.named_parameters()}
        state = self.method.model.state_dict()
        for name, value in self.average.items():
            if name in weights:
                value.lerp_(state[name], 1 - self.hyper.ema)
            else:
                value.copy_(state[name])
