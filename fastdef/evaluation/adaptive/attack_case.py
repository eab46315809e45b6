"""One attack of a row: how its images are made, and who answers them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from fastdef.attacks import Query, search
from fastdef.evaluation.adaptive.budget import Budget
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.target import Target


@dataclass(frozen=True)
class Batch:
    """The images of one unit of work.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) int64.
        ids: (N,) int64 places in the data set, on the CPU.
        seed: of all that is random in making the attack; another one for every unit.
        kept: the images that another case of the same batch has kept, by its key.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    seed: int
    kept: Callable[[str], Tensor]

    def generator(self) -> torch.Generator:
        """A generator on the images' device, at its beginning."""
        return torch.Generator(self.images.device).manual_seed(self.seed)


@dataclass(frozen=True)
class Predictions:
    """Every answer to a batch.

    Attributes:
        right: (N, R) bool.
        steps: (N, R) int32 steps of the defense.
        capped: (N, R) bool, True where its cap cut it off.
        loss: (N,) mean cross-entropy over the noise samples; of what is no answer, as much as there may be.
        answered: (N, R) bool, False where the logits are NaN or infinite, which is never right.
    """

    right: Tensor
    steps: Tensor
    capped: Tensor
    loss: Tensor
    answered: Tensor


Evaluate = Callable[[Batch, Tensor, int, SeedStream], Predictions]  # a batch, its attacked images, R, and who draws


UNRECORDED = {"recorded": False}  # of a field that an attack needs and that is none of its settings


@dataclass(frozen=True)
class Attack(ABC):
    """An attack of a row. Its fields are its settings: what it runs with is what is recorded.

    Attributes:
        plan: of the suite; not recorded here.
    """

    plan: "Plan" = field(repr=False, metadata=UNRECORDED)

    @abstractmethod
    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """Candidates, each (N, C, H, W); of several the one is kept that is answered right least often."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every recorded field, by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.metadata.get("recorded", True)}


@dataclass(frozen=True)
class Kept(Attack):
    """The images that another case has kept.

    Attributes:
        key: of that case.
    """

    key: str

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """They alone, split into candidates of the batch's length."""
        return batch.kept(self.key).split(len(batch.ids))


@dataclass(frozen=True)
class AttackCase:
    """One line of the table.

    Attributes:
        row: 0 to 8.
        name: of the attack.
        craft: the attack.
        evaluate: who answers, and what is right.
        eps: radius in pixel units.
        images: that it is made for, at most.
        noise_samples: R.
        counts: whether it is an attack within eps on what is deployed, and so may be the headline.
        keeps: its images stay in the journal, for another case.
        needs: the key of that other case, where this is the one that takes them.
        view: what the attack and the evaluation both happen in.
    """

    row: int
    name: str
    craft: Attack
    evaluate: Evaluate
    eps: float
    images: int
    noise_samples: int
    counts: bool = True
    keeps: bool = False
    needs: str | None = None
    view: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def key(self) -> str:
        """Its row and name as part of a file's."""
        return key_of(self.row, self.name)


def key_of(row: int, name: str) -> str:
    """The key of the case with that name."""
    return f"{row}-" + "".join(c if c.isalnum() or c in "+-." else "_" for c in name)


@dataclass(frozen=True)
class NotRun:
    """A case that there is not, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What rows make their cases of.

    Attributes:
        target: what is deployed, its classifier as fast as the budget has it.
        model: the classifier itself, for attacks on it alone; None where only answers can be had.
        budget: how much is spent.
        eps: radius in pixel units.
        images: that there are, within the budget.
        classes: that the target tells apart.
        surrogate: an independent model of the same task, for transfer.
        alignment: of the attacks' gradient with finite differences of the answers; None where there is no gradient,
            or nobody attacks by it.
    """

    target: Target
    model: nn.Module | None
    budget: Budget
    eps: float
    images: int
    classes: int
    surrogate: nn.Module | None = None
    alignment: float | None = None

    @property
    def expensive_images(self) -> int:
        """Images of what costs most: all of them where every answer is one forward."""
        return max(1, round(self.budget.expensive_share * self.images)) if self.guarded else self.images

    @property
    def noise_samples(self) -> int:
        """R: one answer where nothing is random."""
        return self.budget.noise_samples if self.target.random else 1

    @property
    def reevaluations(self) -> int:
        """R of clean images, and where candidates are chosen between."""
        return self.budget.reevaluations if self.target.random else 1

    @property
    def patience(self) -> int:
        """Iterations that an image stays after it has fallen: it may have fallen by a lucky draw."""
        return self.budget.patience if self.target.random else 0

    @property
    def typical_steps(self) -> int | None:
        """Steps of the loop that an attack goes through where no other number is asked for."""
        depths = self.budget.depths
        return None if self.target.defense is None else depths[len(depths) // 2]

    @property
    def gradient(self) -> str:
        """How an attack gets the gradient of what is deployed."""
        return "BPDA" if self.guarded else "autograd"

    @property
    def eot(self) -> int:
        """Draws that a gradient is the mean of: one where nothing is random."""
        return self.budget.eot if self.target.random else 1

    def search(
        self, asks: Sequence[Query], batch: Batch, *, eps: float | None = None, iterations: int | None = None
    ) -> Tensor:
        """Auto-PGD with each of ``asks`` in turn, as this plan has it where nothing else is given."""
        return search(
            asks,
            batch.images,
            eps=self.eps if eps is None else eps,
            iterations=self.budget.iterations if iterations is None else iterations,
            patience=self.patience,
            generator=batch.generator(),
        )

    @property
    def guarded(self) -> bool:
        """Whether something stands before the model, so that the model alone is another target."""
        return self.target.purify is not None
