"""What an attack's gradients were like: where they vanished, what stands has not been tested."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdef.attacks._losses import cross_entropy

_USELESS = 0.5  # share of an image's gradients from which the attack on it counts for nothing

Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> (N,)


class GradientRecord:
    """Counts, image by image, the gradients that an attack cannot follow.

        zero       every entry is 0
        nan        some entry is NaN, which ``sign`` turns into no step
        saturated  the label's probability rounds to 1, so cross-entropy's gradient has lost the label's own part

    Attributes:
        counts: (N, 4) int64: all gradients, and of them the zero, the NaN and the saturated ones.
    """

    def __init__(self, count: int) -> None:
        self.counts = torch.zeros(count, 4, dtype=torch.int64)
        self._useless = torch.zeros(count, dtype=torch.int64)
        self._saturated = torch.zeros(count, dtype=torch.bool)

    def watched(self, loss: Loss) -> Loss:
        """The same loss, of a batch in the record's order, which notes who is saturated by cross-entropy."""
        if loss is not cross_entropy:
            return loss

        def watching(logits: Tensor, labels: Tensor) -> Tensor:
            self._saturated = (logits.detach().softmax(1).gather(1, labels[:, None])[:, 0] == 1).cpu()
            return loss(logits, labels)

        return watching

    def observe(self, gradient: Tensor) -> None:
        """Take note of the batch's next (N, C, H, W) gradient; after the loss."""
        zero, nan = health(gradient)
        kinds = torch.stack([torch.ones_like(zero), zero, nan, self._saturated], 1)
        self.counts += kinds
        self._useless += kinds[:, 1:].any(1)

    @property
    def vanished(self) -> Tensor:
        """(N,) bool: at least half of the image's gradients were of no use; True where there was none at all."""
        return self._useless >= _USELESS * self.counts[:, 0]

    def shares(self) -> "GradientShares":
        """Over all images."""
        return GradientShares(*self.counts.sum(0).tolist())


@dataclass(frozen=True)
class GradientShares:
    """How many of an attack's gradients were of no use.

    Attributes:
        count: all gradients.
        zero: every entry is 0.
        nan: some entry is NaN.
        saturated: taken where the label's probability rounds to 1.
    """

    count: int = 0
    zero: int = 0
    nan: int = 0
    saturated: int = 0

    def __add__(self, other: "GradientShares") -> "GradientShares":
        return GradientShares(*(getattr(self, name) + getattr(other, name) for name in self.__dict__))

    def to_json(self) -> dict[str, float]:
        """The count, and the others as shares of it."""
        return {"count": self.count, **{name: getattr(self, name) / max(1, self.count) for name in _KINDS}}


_KINDS = ("zero", "nan", "saturated")


def health(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(n, ...) gradients -> (n,) bool which are zero all over and (n,) which hold a NaN, on the CPU."""
    flat = gradient.detach().flatten(1)
    return (flat == 0).all(1).cpu(), flat.isnan().any(1).cpu()
