"""The defended classifier as one module that exporters take: noise, the loop with its explicit step, classifier."""

import copy

import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from fastdef.defense import ActiveDefense
from fastdef.export.arithmetic_noise import ArithmeticNoise
from fastdef.runtime import MaskedStep

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class InType(nn.Module):
    """A classifier that computes in a type of its own, float32 at both ends.

    Args:
        model: as it is where the type is float32; else a copy with rounded weights.
        dtype: of weights and activations.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, classes) float32 logits."""
        return self.model(images.to(self.dtype)).float()


class NoisedClassifier(nn.Module):
    """Algorithm 1 with the noise as an input: for replay, and for noise of one's own.

    Outputs, for N images: probabilities (N, classes) averaged over the R outer loops, steps (N,) int32 of all loops
    together, converged (N,) bool, loss (N,) the largest, smoothed (N, C, H, W) of the first loop.
    """

    def __init__(self, defense: ActiveDefense, step: MaskedStep, model: nn.Module) -> None:
        super().__init__()
        self.loop = _Loop(defense, step, model)

    def forward(self, images: Tensor, noise: Tensor) -> Outputs:
        """(N, C, H, W) float32 in [0, 1], (N, R, C, H, W) float32 -> see the class."""
        return self.loop((images[:, None] + noise).flatten(0, 1))


class DefendedClassifier(nn.Module):
    """Algorithm 1 whole: of each image an id and a seed; the noise is that of :class:`ActiveDefense`, to the bit."""

    def __init__(self, defense: ActiveDefense, step: MaskedStep, model: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.noise = ArithmeticNoise(shape, sigma=defense.sigma, loops=defense.outer_loops)
        self.noised = NoisedClassifier(defense, step, model)

    def forward(self, images: Tensor, ids: Tensor, seed: Tensor) -> Outputs:
        """(N, C, H, W) float32 in [0, 1], (N, 4) int32 ids and seeds as :func:`limbs` -> :class:`NoisedClassifier`."""
        return self.noised(images, self.noise(ids, seed))


class _Loop(nn.Module):
    """From noised images, R in a row for each image, to the outputs."""

    def __init__(self, defense: ActiveDefense, step: MaskedStep, model: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.model = model
        self.loops = defense.outer_loops
        self.delta = defense.delta
        self.max_steps = defense.max_steps

    def forward(self, noised: Tensor) -> Outputs:
        counts = torch.zeros_like(noised[:, 0, 0, 0], dtype=torch.int32)
        loss = torch.zeros_like(noised[:, 0, 0, 0])
        running = torch.ones_like(counts, dtype=torch.bool)

        def any_running(images: Tensor, steps: Tensor, loss: Tensor, running: Tensor) -> Tensor:
            return running.any()

        def advance(images: Tensor, steps: Tensor, loss: Tensor, running: Tensor) -> tuple[Tensor, ...]:
            limits = torch.full_like(steps, self.max_steps)
            return self.step(images, steps, limits, torch.full_like(loss[0], self.delta))

        images, steps, loss, _ = while_loop(any_running, advance, (noised, counts, loss, running))
        logits = self.model(images)
        shape = (-1, self.loops)
        loss = loss.view(shape).amax(1)
        return (
            logits.softmax(1).unflatten(0, shape).mean(1),
            steps.view(shape).sum(1, dtype=torch.int32),
            loss <= self.delta,
            loss,
            images.unflatten(0, shape)[:, 0],
        )


class Steps(nn.Module):
    """``count`` masked steps without control flow, for a runtime that keeps the slots itself."""

    def __init__(self, step: MaskedStep, count: int) -> None:
        super().__init__()
        self.step = step
        self.count = count

    def forward(self, images: Tensor, steps: Tensor, limits: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
        """What :class:`MaskedStep` takes and returns."""
        loss = running = images.new_zeros(0)
        for _ in range(self.count):
            images, steps, loss, running = self.step(images, steps, limits, delta)
        return images, steps, loss, running


class Probabilities(nn.Module):
    """The classifier alone, images to probabilities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        return self.model(images).softmax(1)
