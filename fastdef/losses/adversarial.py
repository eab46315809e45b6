"""Adversarial training by four published recipes: where the attack starts, what it raises, what training minimises.

eps and the images are in pixel units; z are the logits of the clean images, z' of the attacked ones, p and p' their
softmax, y the labels, N the batch. ``inner`` is of each sample and is raised; ``outer`` is of a batch and is minimised.

    PGD-AT    inner CE(z', y)         outer CE(z', y)
    TRADES    inner KL(p || p')       outer CE(z, y) + 6 KL(p || p') / N
    MART      inner CE(z', y)         outer BCE(z', y) + 5 mean(KL(p || p') (1 - p_y))
    IAT       inner CE(z', y)         outer (mixup-CE of clean images + mixup-CE of attacked ones) / 2

Sources: Madry et al., 2018; Zhang et al., 2019; Wang et al., 2020; Lamb et al., 2019, with the constants of their code.
"""

import copy
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, nll_loss, one_hot


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """() cross-entropy, in float32 where the logits are of half precision."""
    return cross_entropy(_wide(logits), labels)


class PGDAT:
    """Cross-entropy of the attacked images (Madry et al., 2018).

    Attributes:
        name: on the command line and in model files.
        steps: of the attack.
        step: its step size over eps.
        segments: batches that go through the network, each with statistics of its own.
        compares: whether ``inner`` needs the logits of the clean images.
        mixes: whether ``inputs`` makes an image of more than that image: it then needs the whole joint batch.
    """

    name: ClassVar[str] = "pgd-at"
    steps: int = 10
    step: float = 2 / 8
    segments: ClassVar[int] = 1
    compares: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def with_steps(self, steps: int) -> "PGDAT":
        """The recipe with an attack of so many steps, which goes as far in all; a step is 1.25 eps at most.

        One step of 1.25 eps from a random start is "fast" adversarial training (Wong et al., 2020).

        Raises:
            ValueError: if there is no step.
        """
        if steps < 1:
            raise ValueError(f"an attack needs one step or more, got {steps}")
        other = copy.copy(self)
        if steps != self.steps:
            other.steps, other.step = steps, min(1.25, self.steps * self.step / steps)
        return other

    def start(self, images: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Where the attack starts: anywhere in the ball.

        Args:
            images: (N, C, H, W).
            eps: (N, 1, 1, 1).
            generator: on the CPU, so that a run on CUDA draws the same.
        """
        noise = torch.rand(images.shape, generator=generator, dtype=images.dtype).to(images.device)
        return images + eps * (2 * noise - 1)

    def inner(self, logits: Tensor, labels: Tensor, clean: Tensor | None) -> Tensor:
        """(N,) what the attack raises; ``clean`` are the logits of the clean images where it ``compares``."""
        return cross_entropy(_wide(logits), labels, reduction="none")

    def draw(self, branches: int, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What chance decides of a step besides the start: (branches, ..., N) each, something for every image."""
        return ()

    def inputs(self, images: Tensor, attacked: Tensor, *draws: Tensor) -> tuple[Tensor, ...]:
        """The segments, (N, C, H, W) each."""
        return (attacked,)

    def outer(self, logits: tuple[Tensor, ...], labels: Tensor, *draws: Tensor) -> Tensor:
        """() what training minimises, given the (N, classes) logits of each segment."""
        return classification(logits[0], labels)


class TRADES(PGDAT):
    """Cross-entropy of clean images, and the distance of attacked answers from clean ones (Zhang et al., 2019).

    Args:
        weight: of the distance; the paper's 1 / lambda.
    """

    name: ClassVar[str] = "trades"
    step: float = 0.007 * 255 / 8
    segments: ClassVar[int] = 2
    compares: ClassVar[bool] = True

    def __init__(self, weight: float = 6.0) -> None:
        self.weight = weight

    def start(self, images: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Close by the image: 0.001 N(0, 1)."""
        return images + 0.001 * torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)

    def inner(self, logits: Tensor, labels: Tensor, clean: Tensor | None) -> Tensor:
        """KL(p || p')."""
        if clean is None:
            raise ValueError("TRADES needs the logits of the clean images, got none")
        return _divergence(log_softmax(_wide(logits), 1), _wide(clean).softmax(1))

    def inputs(self, images: Tensor, attacked: Tensor, *draws: Tensor) -> tuple[Tensor, ...]:
        """Clean and attacked images."""
        return images, attacked

    def outer(self, logits: tuple[Tensor, ...], labels: Tensor, *draws: Tensor) -> Tensor:
        """CE(z, y) + weight * mean KL(p || p'), with a gradient through both."""
        clean, attacked = map(_wide, logits)
        distance = _divergence(log_softmax(attacked, 1), clean.softmax(1)).mean()
        return cross_entropy(clean, labels) + self.weight * distance


class MART(TRADES):
    """Boosted cross-entropy of attacked images, and the distance where the clean answer is unsure (Wang et al., 2020).

    Args:
        weight: of the distance; 5 is what the authors' script runs with, 6 what their function would.
    """

    name: ClassVar[str] = "mart"
    compares: ClassVar[bool] = False

    def __init__(self, weight: float = 5.0) -> None:
        super().__init__(weight)

    def inner(self, logits: Tensor, labels: Tensor, clean: Tensor | None) -> Tensor:
        """CE(z', y)."""
        return cross_entropy(_wide(logits), labels, reduction="none")

    def outer(self, logits: tuple[Tensor, ...], labels: Tensor, *draws: Tensor) -> Tensor:
        """CE(z', y) - log(1 - largest wrong p') + weight * mean(KL(p || p') (1 - p_y))."""
        clean, attacked = map(_wide, logits)
        p, attacked_p = clean.softmax(1), attacked.softmax(1)
        own = one_hot(labels, p.shape[1]).bool()
        runner_up = attacked_p.detach().masked_fill(own, -1.0).argmax(1)
        boosted = cross_entropy(attacked, labels) + nll_loss(torch.log(1.0001 - attacked_p + 1e-12), runner_up)
        unsure = 1.0000001 - p.gather(1, labels[:, None])[:, 0]
        return boosted + self.weight * (_divergence(torch.log(attacked_p + 1e-12), p) * unsure).mean()


class IAT(PGDAT):
    """Interpolated adversarial training: mixup of clean images and of attacked ones (Lamb et al., 2019).

    Each of the two has its own ratio, from Beta(1, 1), and its own partners.
    """

    name: ClassVar[str] = "iat"
    steps: int = 7
    segments: ClassVar[int] = 2
    mixes: ClassVar[bool] = True

    def draw(self, branches: int, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """(branches, 2, N) ratios, the same for all images of a segment; their partners, and the partners' labels."""
        count = len(labels)
        ratios = torch.rand(branches, 2, generator=generator)[..., None].expand(-1, -1, count)
        orders = [torch.randperm(count, generator=generator) for _ in range(2 * branches)]
        partners = torch.stack(orders).view(branches, 2, count).to(labels.device)
        return ratios.to(labels.device), partners, labels[partners]

    def inputs(self, images: Tensor, attacked: Tensor, *draws: Tensor) -> tuple[Tensor, ...]:
        """Clean images mixed among themselves, and attacked ones."""
        ratios, partners, _ = draws
        columns = ratios[..., None, None, None]
        pairs = zip(columns, partners, (images, attacked), strict=True)
        return tuple(ratio * x + (1 - ratio) * x[order] for ratio, order, x in pairs)

    def outer(self, logits: tuple[Tensor, ...], labels: Tensor, *draws: Tensor) -> Tensor:
        """The mean of the two mixup losses."""
        ratios, _, others = draws
        losses = [
            ratio * classification(z, labels) + (1 - ratio) * classification(z, other)
            for ratio, other, z in zip(ratios[:, 0], others, logits, strict=True)
        ]
        return (losses[0] + losses[1]) / 2


RECIPES: dict[str, type[PGDAT]] = {recipe.name: recipe for recipe in (PGDAT, TRADES, MART, IAT)}


def _divergence(log_q: Tensor, p: Tensor) -> Tensor:
    """KL(p || q) of each sample."""
    return kl_div(log_q, p, reduction="none").sum(1)


def _wide(logits: Tensor) -> Tensor:
    """Half precisions as float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
