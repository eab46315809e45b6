"""Active Defense as a paper's code has it: what ours is measured against, and the oracle of its tests."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastdef.nn import tap


def lockstep(
    model: nn.Module,
    layer: str,
    images: Tensor,
    noise: Tensor,
    *,
    beta: float,
    delta: float,
    max_steps: int,
    run: Callable[[Tensor], object] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1 on a batch: the whole network forward, ``loss.backward()``, until the slowest image is done.

    Nothing is spared: weight gradients are computed, every image is carried to the end, the host looks at each step.
    Only the stopping is per sample, since L_F and Algorithm 1 are.

    Args:
        model: a classifier in eval mode.
        layer: name of the smoothed layer.
        images: (N, C, H, W) in [0, 1].
        noise: (N, C, H, W) to add first.
        beta: step size.
        delta: threshold.
        max_steps: steps an image may take.
        run: what to call for the forward, for example a compiled ``model``; ``model`` itself if not given.

    Returns:
        (N, C, H, W) smoothed images, (N,) int64 steps, and (N,) losses of the smoothed images.
    """
    t = images + noise
    steps = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    with tap(model, layer) as tapped:
        while True:
            t = t.detach().requires_grad_()
            (run or model)(t)
            features = tapped.features.flatten(1)
            loss = (features - features.mean(1, keepdim=True)).abs().mean(1)
            loss.sum().backward()
            running = (loss > delta) & (steps < max_steps)
            if not running.any():
                model.zero_grad()
                return t.detach(), steps, loss.detach()
            t = torch.where(running.view(-1, 1, 1, 1), t - beta * t.grad, t)  # type: ignore[operator]
            steps += running
