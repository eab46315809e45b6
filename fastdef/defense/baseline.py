"""Active Defense as a paper's code has it: what ours is measured against, and the oracle of its tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastdef.nn import tap

Losses = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N,) L_F


@contextmanager
def whole_network(model: nn.Module, layer: str) -> Iterator[Losses]:
    """L_F by running the whole network forward, the layer's output caught by a hook on the way.

    Nothing is spared: what follows the layer is computed, and a backward of the loss makes weight gradients.
    """
    with tap(model, layer) as tapped:

        def losses(images: Tensor) -> Tensor:
            model(images)
            features = tapped.features.flatten(1)
            return (features - features.mean(1, keepdim=True)).abs().mean(1)

        yield losses


def lockstep(
    losses: Losses, images: Tensor, noise: Tensor, *, beta: float, delta: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1 on a batch: ``loss.backward()``, all images together until the slowest is done.

    Only the stopping is per sample, since L_F and Algorithm 1 are.

    Args:
        losses: (N, C, H, W) images to (N,) L_F, differentiable; see :func:`whole_network`.
        images: (N, C, H, W) in [0, 1].
        noise: (N, C, H, W) to add first.
        beta: step size.
        delta: threshold.
        max_steps: steps an image may take.

    Returns:
        (N, C, H, W) smoothed images, (N,) int64 steps, and (N,) losses of the smoothed images.
    """
    t = images + noise
    steps = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    while True:
        t = t.detach().requires_grad_()
        loss = losses(t)
        loss.sum().backward()
        gradient = t.grad
        running = (loss > delta) & (steps < max_steps)
        if gradient is None or not running.any():
            return t.detach(), steps, loss.detach()
        t = torch.where(running.view(-1, 1, 1, 1), t - beta * gradient, t)
        steps += running
