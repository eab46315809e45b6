"""Stage II of AFA: the weight generator learns to mix the two branches that are left."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from fastdef import distributed
from fastdef.attacks import frozen_eval, predicted, projected_ascent
from fastdef.data import Dataset
from fastdef.losses import PGDAT, classification
from fastdef.nn import WeightGenerator, architecture_of, fusing_weights
from fastdef.training.validation import attacked


class Fusing:
    """Cross-entropy of images of mixed strengths, which the model is not told; only the weight generators learn.

    Each image gets a strength by chance, and is attacked with PGD through the whole model, generators included.

    Args:
        model: made by ``convert_to_afa``.
        strengths: what an image's strength is drawn from, in pixel units; the paper does not say from what.
        attack_steps: of PGD, see :meth:`PGDAT.with_steps`.
        supervision: weight of a second term, the binary cross-entropy of W1 and an image's share of the largest
            strength, which tells the generators what they are to see; the paper has none.
        compile: run the attack's forward and backward through torch.compile.

    Raises:
        ValueError: if the model has no weight generator, or a strength is negative.
    """

    def __init__(
        self,
        model: nn.Module,
        strengths: Sequence[float],
        *,
        attack_steps: int = PGDAT.steps,
        supervision: float = 0.0,
        compile: bool = False,
    ) -> None:
        if not strengths or min(strengths) < 0:
            raise ValueError(f"Fusing needs strengths from 0 up, got {tuple(strengths)}")
        if not supervision >= 0 or (supervision and not max(strengths)):
            raise ValueError(f"Fusing needs a supervision from 0 up, and a strength above 0 for it, got {supervision}")
        self.model = model
        self.strengths = tuple(strengths)
        self.supervision = supervision
        self._generators = [module for module in model.modules() if isinstance(module, WeightGenerator)]
        if not self._generators:
            raise ValueError(f"Fusing needs a model made by convert_to_afa, got a {type(model).__name__} that was not")
        self._recipe = PGDAT().with_steps(attack_steps)
        self._objective = torch.compile(self._inner, fullgraph=True, dynamic=False) if compile else self._inner

    def config(self) -> dict[str, Any]:
        """Name and parameters."""
        strengths = [round(xi * 255, 6) for xi in self.strengths]
        model = architecture_of(self.model)
        unusual = {"supervision": self.supervision} if self.supervision else {}
        return {"name": "afa stage II", "strengths": strengths, "model": model, **vars(self._recipe), **unusual}

    def parameters(self) -> Iterable[nn.Parameter]:
        """The generators' weights."""
        return [weight for generator in self._generators for weight in generator.parameters()]

    def running(self) -> nullcontext[None]:
        """Nothing."""
        return nullcontext()

    def training_mode(self) -> None:
        """The generators train; the rest is as it is when it runs."""
        self.model.eval()
        for generator in self._generators:
            generator.train()

    def prepare(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        """This rank's images, attacked by a strength of chance each, their labels, and (N,) shares of the strongest."""
        own = distributed.local_slice(len(images))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(self.strengths), (len(images),), generator=generator)
        eps = torch.tensor(self.strengths, dtype=images.dtype)[chosen].to(images.device).view(-1, 1, 1, 1)
        start = self._recipe.start(images, eps, generator).clamp(0, 1)
        images, labels, eps, start = (value[own] for value in (images, labels, eps, start))
        with frozen_eval(self.model):
            crafted = projected_ascent(
                lambda x: self._objective(x, labels),
                images,
                eps=eps,
                step=eps * self._recipe.step,
                steps=self._recipe.steps,
                start=start,
            )
        return crafted, labels, eps.flatten() / (max(self.strengths) or 1.0)

    def loss(self, *prepared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, and what supervises the generators where they are."""
        images, labels, shares = prepared
        if not self.supervision:
            return classification(self.model(images), labels), {}
        logits, w0 = fusing_weights(self.model, images)
        w1 = (1 - w0).clamp(1e-6, 1 - 1e-6)
        told = binary_cross_entropy(w1, shares.to(w1)[:, None].expand_as(w1))
        return classification(logits, labels) + self.supervision * told, {"supervision": told.detach()}

    def update_bn(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Leave all statistics as they are."""

    def validate(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """Accuracy of the whole model, clean and under the strongest attack, and the mean W1 of each."""
        figures: dict[str, float] = {}
        for prefix, w1, eps in (("", "clean_w1", 0.0), ("robust_", "attacked_w1", max(self.strengths))):
            right = weight = count = 0.0
            for images, labels in attacked(model, dataset, eps):
                with torch.no_grad():
                    logits, w0 = fusing_weights(model, images)
                right += float((predicted(logits) == labels).sum())
                weight += float((1 - w0).mean(1).sum())
                count += len(labels)
            figures |= {f"{prefix}accuracy": right / count, w1: weight / count}
        return figures

    def _inner(self, x: Tensor, labels: Tensor) -> Tensor:
        return self._recipe.inner(self.model(x), labels, None)
