"""What is attacked, as an attacker who knows everything sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdef.attacks import frozen_eval
from fastdef.defense import ActiveDefense

Classifier = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N, classes) logits


class Answers(NamedTuple):
    """What came back for a batch.

    Attributes:
        logits: (N, classes), on the device of the images.
        steps: (N,) int64 steps that the defense took, on the CPU; 0 without one.
        capped: (N,) bool, True where it was cut off by its cap.
    """

    logits: Tensor
    steps: Tensor
    capped: Tensor


@dataclass(frozen=True)
class Target:
    """A classifier with all that may stand before it.

    Attributes:
        answer: (N, C, H, W) images and (N,) int64 ids, which randomness hangs on, to what a user gets.
        classifier: the part behind the purification, differentiable; None where nothing but answers can be had.
        purify: images, ids and the steps allowed (None: all) to purified images; None where nothing is purified.
        random: whether the same image with another id may be answered otherwise.
        defense: the Active Defense that purifies, for attacks that know its loop.
        batch: images that a gradient is taken of at once.
        identity: sha256 of what is deployed, where there is no classifier to take it of; None where nobody knows it,
            and then a folder of work cannot tell such a target from another.
    """

    answer: Callable[[Tensor, Tensor], Answers]
    classifier: nn.Module | None = None
    purify: Callable[[Tensor, Tensor, int | None], Tensor] | None = None
    random: bool = False
    defense: ActiveDefense | None = None
    batch: int = 128
    identity: str | None = None

    def logits(self, images: Tensor, ids: Tensor, steps: int | None) -> Tensor:
        """(N, classes) answers with the purification's loop cut after ``steps``, where there is one to cut."""
        if self.defense is None or self.classifier is None or self.purify is None:
            return self.answer(images, ids).logits
        return _plain(self.classifier, self.purify(images, ids, steps)).logits

    @classmethod
    def plain(cls, model: nn.Module, *, random: bool = False) -> "Target":
        """A module that answers for itself; ``random`` if it draws from torch's generator while it does.

        Raises:
            ValueError: for anything but a module.
        """
        _check_module(model, where="Target.plain")
        return cls(lambda images, ids: _plain(model, images), classifier=model, random=random)

    @classmethod
    def defended(cls, defense: ActiveDefense) -> "Target":
        """A classifier behind Active Defense."""

        def answer(images: Tensor, ids: Tensor) -> Answers:
            batch = defense.defend(images, ids=ids)
            return Answers(batch.logits.to(images.device), batch.steps, ~batch.converged)

        def purify(images: Tensor, ids: Tensor, steps: int | None) -> Tensor:
            budgets = None if steps is None else torch.full((len(images),), steps)
            return defense.smooth(images, ids=ids, budgets=budgets).images.to(images)

        return cls(answer, classifier=defense.model, purify=purify, random=True, defense=defense)

    @classmethod
    def purified(cls, model: nn.Module, purify: Callable[[Tensor, Tensor], Tensor], *, random: bool) -> "Target":
        """A classifier behind any other function of images and ids: rounding, noise, compression.

        The suite's attacks take its gradient for the identity's, which breaks what merely hides a gradient.

        Raises:
            ValueError: for a classifier that is no module.
        """
        _check_module(model, where="Target.purified")
        return cls(
            lambda images, ids: _plain(model, purify(images, ids)),
            classifier=model,
            purify=lambda images, ids, steps: purify(images, ids),
            random=random,
        )

    @classmethod
    def opaque(
        cls, answer: Callable[[Tensor, Tensor], Answers], *, random: bool, identity: str | None = None
    ) -> "Target":
        """Something that only answers, such as an exported engine: black-box attacks alone."""
        return cls(answer, random=random, identity=identity)


def _check_module(model: object, *, where: str) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{where} needs a torch.nn.Module, got {type(model).__name__}; see Target.opaque")


@torch.no_grad()
def _plain(model: nn.Module, images: Tensor) -> Answers:
    with frozen_eval(model):
        logits = model(images)
    return Answers(logits, torch.zeros(len(images), dtype=torch.int64), torch.zeros(len(images), dtype=torch.bool))


class FixedBatch(nn.Module):
    """A classifier that only ever runs batches of one size, whatever it is given; differentiable.

    AutoAttack's batches shrink as images fall. A compiled model would be compiled anew for each size, and AutoAttack,
    which watches for calls to autograd inside the model, would take that for a dynamic defense.
    """

    def __init__(self, model: nn.Module, size: int, *, compile: bool = False) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self._run = torch.compile(model, dynamic=False) if compile else model

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images, any N -> (N, classes) logits."""
        return torch.cat([self._padded(chunk) for chunk in images.split(self.size)])

    def warm(self, like: Tensor) -> None:
        """Compile all that attacks will ask for, before AutoAttack watches: with gradients and without."""
        batch = like[:1].detach().expand(self.size, -1, -1, -1).contiguous()
        with torch.no_grad():
            self._run(batch)
        with torch.enable_grad():
            self._run(batch)
            wanted = batch.clone().requires_grad_()
            torch.autograd.grad(self._run(wanted).sum(), wanted)

    def _padded(self, images: Tensor) -> Tensor:
        count = len(images)
        if count < self.size:
            filler = images[-1:].detach().expand(self.size - count, -1, -1, -1)
            images = torch.cat([images, filler])
        return self._run(images.contiguous())[:count]
