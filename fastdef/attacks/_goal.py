"""What an attack wants of the logits, and what it learns from one query."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastdef.attacks._losses import cross_entropy, targeted_dlr
from fastdef.attacks._model import gradient_of


class QueryResult(NamedTuple):
    """What an attack learns at one point of each image.

    Attributes:
        loss: (n,) what it raises.
        gradient: (n, C, H, W) of the loss.
        right: (n,) share of the defense's draws that were answered right, 0 to 1; 0 or 1 where nothing is drawn.
    """

    loss: Tensor
    gradient: Tensor
    right: Tensor


Query = Callable[[Tensor, Tensor], QueryResult]  # (n, C, H, W) points and their (n,) rows in the batch


@dataclass(frozen=True)
class Goal:
    """What is raised, and when an answer is still right.

    Attributes:
        loss: (n, classes) logits and (n,) rows of the batch -> (n,) values to raise.
        right: the same -> (n,) bool.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    right: Callable[[Tensor, Tensor], Tensor]


def predicted(logits: Tensor) -> Tensor:
    """(N, classes) logits to (N,) int64: the class of the largest, or -1 where one is NaN or +Inf: no answer.

    What is no answer is never right: -1 is nobody's label.
    """
    answered = ~(logits.isnan() | logits.isposinf()).any(1)
    return logits.argmax(1).where(answered, -1)


def untargeted(labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy) -> Goal:
    """Any other class. ``loss`` takes logits and labels.

    Raises:
        ValueError: on use, for a label that the model has no class for. A GPU would end the process's use of it.
    """
    top = int(labels.max())

    def raised(logits: Tensor, rows: Tensor) -> Tensor:
        if logits.shape[-1] <= top:
            raise ValueError(f"attacks need labels that the model has: {logits.shape[-1]} classes, got a label {top}")
        return loss(logits, labels[rows])

    return Goal(raised, lambda logits, rows: predicted(logits) == labels[rows])


def targeted(labels: Tensor, targets: Tensor) -> Goal:
    """A class for each image, by the targeted DLR loss; any other class than the label's is a success all the same."""
    return Goal(
        lambda logits, rows: targeted_dlr(logits, labels[rows], targets[rows]),
        lambda logits, rows: predicted(logits) == labels[rows],
    )


def white_box(model: Callable[[Tensor], Tensor], goal: Goal) -> Query:
    """Query a differentiable model, which is in the mode it should be attacked in; see ``frozen_eval``.

    Raises:
        ValueError: on use, for a model that gives no gradient.
    """

    def ask(x: Tensor, rows: Tensor) -> QueryResult:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = model(x)
            loss = goal.loss(logits, rows)
            gradient = gradient_of(loss, x)
        return QueryResult(loss.detach(), gradient, goal.right(logits.detach(), rows).to(x.dtype))

    return ask
