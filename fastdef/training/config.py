"""Hyperparameters of a run: everything, besides method and data, that decides the weights it ends with."""

import math
from dataclasses import dataclass

from fastdef._validate import check_positive

SCHEDULES = ("onecycle", "step")


@dataclass(frozen=True)
class TrainConfig:
    """SGD with momentum, under a schedule.

    Attributes:
        epochs: times through the data.
        batch_size: images a step.
        lr: largest learning rate.
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: of SGD, on all weights.
        schedule: "onecycle": linear up over ``warmup`` of the steps, then a cosine down to 0; "step": times
            ``decay`` at each milestone.
        warmup: share of the steps.
        milestones: epochs at which the rate falls.
        decay: what it is multiplied with then.
        clip: largest norm of the gradient, 0 for no bound.
        ema: decay of an exponential moving average of the weights, which is then what is validated and saved; 0
            for none.
        bf16: run the network under bfloat16 autocast.
        compile: run forward and loss through torch.compile, as one graph.
        seed: of the initial weights, the batches and the attacks.

    Raises:
        ValueError: for a value out of its range.
    """

    epochs: int = 15
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    warmup: float = 0.25
    milestones: tuple[int, ...] = (75, 90)
    decay: float = 0.1
    clip: float = 0.0
    ema: float = 0.0
    bf16: bool = False
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            check_positive(getattr(self, name), name=name, where="training")
        for name in ("momentum", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"training needs {name} from 0 up, got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"training needs a schedule among {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not (0 <= self.ema < 1 and 0 < self.warmup < 1):
            raise ValueError(f"training needs 0 <= ema < 1 and 0 < warmup < 1, got {self.ema} and {self.warmup}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self.schedule == "step":
            return self.lr * self.decay ** sum(step >= m * steps_per_epoch for m in self.milestones)
        total = self.epochs * steps_per_epoch
        rising = self.warmup * total
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
