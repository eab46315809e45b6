"""Steps and epochs of one run: model, optimizer and average."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from fastdef import distributed
from fastdef.data import Batches
from fastdef.nn import joint_statistics
from fastdef.training.config import TrainConfig
from fastdef.training.ema import EMA
from fastdef.training.method import Method

Progress = Callable[[int, int, dict[str, float]], object]  # epoch, steps done in it, figures
_LOOK_EVERY = 20  # steps; each look at the losses waits for the device
_SETTLED_ON = 40  # batches


class Trainer:
    """What a run changes as it goes; on several ranks it stays the same on all of them.

    Args:
        method: turns batches into losses; its model goes to channels_last.
        config: hyperparameters.
    """

    def __init__(self, method: Method, config: TrainConfig) -> None:
        self.method = method
        self.config = config
        method.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._weights = list(method.parameters())
        self.optimizer = torch.optim.SGD(
            self._weights,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
        )
        self._average = EMA(method.model, config.ema) if config.ema else None
        self._loss = torch.compile(method.loss, fullgraph=True) if config.compile else method.loss

    @property
    def averages(self) -> dict[str, Tensor]:
        """Averaged state by name; empty without an average."""
        return {} if self._average is None else self._average.tensors

    def epoch(self, epoch: int, batches: Batches, progress: Progress) -> dict[str, float]:
        """Once through the data; returns the mean of what the method logs.

        Raises:
            ValueError: if one of these is not finite.
        """
        sums: dict[str, Tensor] = {}
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            number = epoch * len(batches) + step
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.rate(number, len(batches))
            for name, value in self.step(images, labels, number).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            if step % _LOOK_EVERY == _LOOK_EVERY - 1 or step == len(batches) - 1:
                figures = _means(sums, step + 1)
                check_finite(figures, epoch)
                progress(epoch, step + 1, figures)
        return {f"train_{name}": value for name, value in figures.items()}

    def eval_model(self, epoch: int, batches: Batches) -> nn.Module:
        """The model to validate and save: a copy in eval mode, of the average where there is one."""
        model = copy.deepcopy(self.method.model)
        if self._average is not None:
            model.load_state_dict(self._average.tensors)
        first = itertools.islice(batches.epoch(epoch), _SETTLED_ON)
        with joint_statistics(model):
            self.method.update_bn(model, _shares(first))
        return model.eval()

    def step(self, images: Tensor, labels: Tensor, number: int) -> dict[str, Tensor]:
        """One step on one joint batch, the ``number``-th of the run; returns the () figures of this rank's share."""
        config = self.config
        images = images.contiguous(memory_format=torch.channels_last)
        # Two contexts: autocast keeps the weights it has cast, and those of one without a gradient have none.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
            prepared = self.method.prepare(images, labels, seed=config.seed * 1_000_003 + number)
        self.method.training_mode()
        with (
            torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16),
            joint_statistics(self.method.model),
        ):
            loss, logged = self._loss(*prepared)
        self.optimizer.zero_grad()
        loss.backward()
        distributed.all_reduce_mean([weight.grad for weight in self._weights if weight.grad is not None])
        if config.clip:
            nn.utils.clip_grad_norm_(self._weights, config.clip)
        self.optimizer.step()
        if self._average is not None:
            self._average.update(number)
        return {"loss": loss.detach(), **logged}


def _shares(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        own = distributed.local_slice(len(images))
        yield images[own], labels[own]


def _means(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """Figures of ``steps`` joint batches."""
    joint = [value.clone() for value in sums.values()]
    distributed.all_reduce_mean(joint)
    return {name: float(value) / steps for name, value in zip(sums, joint, strict=True)}


def check_finite(figures: dict[str, float], epoch: int) -> None:
    """Refuse to go on from figures that are NaN or infinite.

    Raises:
        ValueError: naming the first.
    """
    for name, value in figures.items():
        if not math.isfinite(value):
            kept = f"the files are of epoch {epoch}" if epoch else "no file was written"
            raise ValueError(
                f"training stopped: {name} of epoch {epoch + 1} is not finite but {value}; {kept}, "
                "and a smaller learning rate may help"
            )
