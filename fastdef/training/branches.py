"""Stage I of AFA: adversarial training of K branches, one an attack strength (AFA, Algorithm 1)."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastdef import distributed
from fastdef.attacks import frozen_eval, projected_ascent
from fastdef.data import Dataset
from fastdef.losses import PGDAT, classification
from fastdef.nn import architecture_of, branch, set_branch
from fastdef.training.validation import robust_accuracy

_AT_ONCE = 128  # images that a CPU attacks at once: the activations of all 512 of a step would not fit its caches
STRENGTHS = {1: (8,), 2: (0, 8), 3: (0, 4, 8), 5: (0, 1, 2, 4, 8), 9: tuple(range(9))}  # by K, in 255ths


class Branches:
    """The losses of all branches on one batch, as one batch: CE through branch 0, L_adv through every other.

        L = sum over k of  CE(f_k(x), y)  where xi_k is 0,  else  L_adv(f_k, x, x + attack of strength xi_k, y)

    Every branch sees the same images. The attacks of all strengths are one loop over one batch, and so is the forward
    of the loss, whose segments keep the statistics of their branch. Attacks are crafted in eval mode, each through
    its branch. With a single branch this is the recipe alone, as published.

    Args:
        model: lifted by ``convert_to_multi_bn`` to as many branches as there are strengths.
        recipe: what L_adv is.
        strengths: xi, in pixel units; 0 for the clean images.
        compile: run the attack's forward and backward through torch.compile.

    Raises:
        ValueError: if the model has not a branch for each strength, or a strength is negative.
    """

    def __init__(self, model: nn.Module, recipe: PGDAT, strengths: Sequence[float], *, compile: bool = False) -> None:
        if not strengths or min(strengths) < 0:
            raise ValueError(f"Branches needs strengths from 0 up, got {tuple(strengths)}")
        set_branch(model, range(len(strengths)))
        self.model = model
        self.recipe = recipe
        self.strengths = tuple(strengths)
        self._attacked = [k for k, xi in enumerate(strengths) if xi > 0]
        self._active = [k for k, xi in enumerate(strengths) for _ in range(recipe.segments if xi > 0 else 1)]
        self._objective = torch.compile(self._inner, fullgraph=True, dynamic=False) if compile else self._inner

    def config(self) -> dict[str, Any]:
        """Name and parameters."""
        strengths = [round(xi * 255, 6) for xi in self.strengths]
        recipe = {"name": self.recipe.name, **vars(self.recipe)}
        return {"name": "afa stage I", "recipe": recipe, "strengths": strengths, "model": architecture_of(self.model)}

    def parameters(self) -> Iterable[nn.Parameter]:
        """Every weight."""
        return self.model.parameters()

    def running(self) -> nullcontext[None]:
        """Nothing."""
        return nullcontext()

    def training_mode(self) -> None:
        """Everything trains, on the segments that ``prepare`` returned."""
        self.model.train()
        set_branch(self.model, self._active)

    def prepare(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        """Craft the attacks; this rank's share of all branches' segments as one batch, its labels and draws."""
        own = distributed.local_slice(len(images))
        if not self._attacked:
            return images[own], labels[own]
        count, strengths = len(self._attacked), [self.strengths[k] for k in self._attacked]
        generator = torch.Generator().manual_seed(seed)
        eps = images.new_tensor(strengths).repeat_interleave(len(images)).view(-1, 1, 1, 1)
        repeated = torch.cat([images] * count)
        start = self.recipe.start(repeated, eps, generator).clamp(repeated - eps, repeated + eps).clamp(0, 1)
        draws = self.recipe.draw(count, labels, generator)
        repeated, eps, start = (
            value.unflatten(0, (count, -1))[:, own].flatten(0, 1) for value in (repeated, eps, start)
        )
        with frozen_eval(self.model):
            attacked = self._craft(repeated, labels[own].repeat(count), eps, start).unflatten(0, (count, -1))
        segments = self._segments(images, attacked, draws, own)
        return segments, labels[own], *(draw[..., own] for draw in draws)

    def loss(self, *prepared: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the branches; logs the clean and the mean adversarial loss."""
        inputs, labels, *draws = prepared
        logits = iter(self._forward(inputs))
        clean: list[Tensor] = []
        adversarial: list[Tensor] = []
        for xi in self.strengths:
            if xi > 0:
                own = tuple(next(logits) for _ in range(self.recipe.segments))
                drawn = (draw[len(adversarial)] for draw in draws)
                adversarial.append(self.recipe.outer(own, labels, *drawn))
            else:
                clean.append(classification(next(logits), labels))
        logged = {}
        if clean:
            logged["clean_loss"] = clean[0].detach()
        if adversarial:
            logged["adversarial_loss"] = torch.stack(adversarial).mean().detach()
        return torch.stack(clean + adversarial).sum(), logged

    def update_bn(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Leave the running statistics: each branch has those of its own images."""

    def validate(self, model: nn.Module, dataset: Dataset) -> dict[str, float]:
        """Clean accuracy through the first branch, and accuracy under the strongest attack through the last."""
        with branch(model, 0):
            figures = {"accuracy": robust_accuracy(model, dataset, 0.0)}
        if self._attacked:
            with branch(model, len(self.strengths) - 1):
                figures["robust_accuracy"] = robust_accuracy(model, dataset, self.strengths[-1])
        return figures

    def _segments(self, images: Tensor, attacked: Tensor, draws: Sequence[Tensor], own: slice) -> Tensor:
        """This rank's images of every segment, in the order of the branches."""
        if self.recipe.mixes:  # with images of other ranks
            attacked = torch.cat(tuple(distributed.all_gather(attacked)), dim=1)
        else:
            images, draws, own = images[own], [draw[..., own] for draw in draws], slice(None)
        segments: list[Tensor] = []
        for k, xi in enumerate(self.strengths):
            if xi > 0:
                place = self._attacked.index(k)
                segments += self.recipe.inputs(images, attacked[place], *(draw[place] for draw in draws))
            else:
                segments.append(images)
        return torch.cat([segment[own] for segment in segments])

    def _craft(self, images: Tensor, labels: Tensor, eps: Tensor, start: Tensor) -> Tensor:
        """Attack all strengths at once, each through its branch; a chunk has the same images of every branch."""
        count = len(self._attacked)
        size = _chunk(len(images) // count, count) if images.device.type == "cpu" else len(images) // count
        whole = [value.unflatten(0, (count, -1)).split(size, dim=1) for value in (images, labels, eps, start)]
        attacked = []
        with branch(self.model, self._attacked):
            for chunk in zip(*whole, strict=True):
                x = self._ascend(*(_channels_last(value.flatten(0, 1)) for value in chunk))
                attacked.append(x.unflatten(0, (count, -1)))
        return torch.cat(attacked, dim=1).flatten(0, 1)

    def _forward(self, inputs: Tensor) -> Sequence[Tensor]:
        """Logits of each segment."""
        return self.model(inputs).chunk(len(self._active))

    def _ascend(self, images: Tensor, labels: Tensor, eps: Tensor, start: Tensor) -> Tensor:
        clean = None
        if self.recipe.compares:
            with torch.no_grad():
                clean = self.model(images)
        return projected_ascent(
            lambda x: self._objective(x, labels, clean),
            images,
            eps=eps,
            step=eps * self.recipe.step,
            steps=self.recipe.steps,
            start=start,
        )

    def _inner(self, x: Tensor, labels: Tensor, clean: Tensor | None) -> Tensor:
        return self.recipe.inner(self.model(x), labels, clean)


class SequentialBranches(Branches):
    """Algorithm 1 as written: one branch after the other. What the batched form is held against."""

    def config(self) -> dict[str, Any]:
        """Under another name: its sums are in another order, and so not the same to the bit."""
        return {**super().config(), "name": "afa stage I, branch by branch"}

    def _craft(self, images: Tensor, labels: Tensor, eps: Tensor, start: Tensor) -> Tensor:
        attacked = []
        whole = zip(*(value.chunk(len(self._attacked)) for value in (images, labels, eps, start)), strict=True)
        for k, segment in zip(self._attacked, whole, strict=True):
            with branch(self.model, k):
                attacked.append(self._ascend(*segment))
        return torch.cat(attacked)

    def _forward(self, inputs: Tensor) -> Sequence[Tensor]:
        logits = []
        for k, segment in zip(self._active, inputs.chunk(len(self._active)), strict=True):
            with branch(self.model, k):
                logits.append(self.model(segment))
        return logits


def _chunk(batch: int, branches: int) -> int:
    """The largest divisor of the batch that makes a chunk of no more than ``_AT_ONCE`` images with all its branches."""
    return max(size for size in range(1, batch + 1) if batch % size == 0 and (size * branches <= _AT_ONCE or size == 1))


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
