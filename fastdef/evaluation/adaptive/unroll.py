"""The true gradient of a smoothed loop: |.| and ReLU are rounded off in the attacker's copy, and nothing is detached.

Active Defense's second derivative is zero almost everywhere, so that unrolling it tells an attacker no more than BPDA
does. A copy whose kinks are rounded off has its curvature, which may lead where the piecewise linear one does not.

The gradient is exact for that copy: v <- v - beta * H(t_i) v from the last step to the first, where H v is the gradient
of <dL_F/dt, v>. Only the t_i are kept and each step is run again on the way back: checkpointing at every step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastdef.attacks import Goal, Query, QueryResult, white_box
from fastdef.defense import ActiveDefense
from fastdef.evaluation.adaptive.bpda import in_parts, mean_over_draws
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds
from fastdef.nn import prefix

Losses = Callable[[Tensor], Tensor]  # (N, C, H, W) -> (N,)
_ROUNDING = 0.3  # radius of a rounded kink, over the root mean square of what comes in


class RoundedKinks(TorchFunctionMode):
    """Inside the ``with``, |x| is sqrt(x^2 + r^2) and ReLU is (x + |x|) / 2, r a share of the sample's own scale."""

    def __init__(self, share: float = _ROUNDING) -> None:
        super().__init__()
        self._share = share

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the two, and leave all else."""
        if function in _RELUS:
            return (args[0] + self._absolute(args[0])) / 2
        if function in _ABSOLUTES:
            return self._absolute(args[0])
        return function(*args, **(kwargs or {}))

    def _absolute(self, x: Tensor) -> Tensor:
        others = tuple(range(1, x.ndim))
        radius = self._share * x.detach().square().mean(others, keepdim=True).sqrt()
        return (x.square() + radius.square() + torch.finfo(x.dtype).tiny).sqrt()


_RELUS = {torch.relu, torch.relu_, torch.nn.functional.relu, Tensor.relu}
_ABSOLUTES = {torch.abs, Tensor.abs, Tensor.__abs__}


def rounded_losses(defense: ActiveDefense) -> Losses:
    """L_F of the attacker's copy, twice differentiable."""
    network = prefix(defense.model, defense.layer)

    def losses(images: Tensor) -> Tensor:
        with RoundedKinks():
            features = network(images).flatten(1)
            return (features - features.mean(1, keepdim=True)).abs().mean(1)

    return losses


def unrolled(defense: ActiveDefense, goal: Goal, draws: NoiseSeeds, *, eot: int, steps: int, batch: int = 128) -> Query:
    """Mean over ``eot`` draws of the true gradient through ``steps`` steps of the rounded loop."""
    losses = rounded_losses(defense)
    classify = white_box(defense.model, goal)

    def through(noised: Tensor, owners: Tensor) -> QueryResult:
        points, moved = descend(losses, noised, beta=defense.beta, delta=defense.delta, steps=steps)
        query = classify(points[-1], owners)
        return query._replace(gradient=pull_back(losses, query.gradient, points, moved, beta=defense.beta))

    def ask(x: Tensor, rows: Tensor) -> QueryResult:
        noised = defense.noised(x.detach().repeat_interleave(eot, 0), ids=draws.next(rows, eot))
        return mean_over_draws(in_parts(through, batch)(noised, rows.repeat_interleave(eot)), eot)

    return ask


def descend(losses: Losses, t: Tensor, *, beta: float, delta: float, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """The points of the loop, first and last included, and before each step which samples (N,) still move."""
    points, moved = [t.detach()], []
    for _ in range(steps):
        loss, gradient = _loss_and_gradient(losses, points[-1])
        moves = loss > delta
        if not bool(moves.any()):
            break
        points.append(torch.where(_wide(moves), points[-1] - beta * gradient, points[-1]))
        moved.append(moves)
    return points, moved


def pull_back(losses: Losses, v: Tensor, points: list[Tensor], moved: list[Tensor], *, beta: float) -> Tensor:
    """A gradient at the loop's end, carried to its beginning."""
    for t, moves in zip(reversed(points[:-1]), reversed(moved), strict=True):
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            (first,) = torch.autograd.grad(losses(t).sum(), t, create_graph=True)
            (curvature,) = torch.autograd.grad((first * v).sum(), t)
        v = torch.where(_wide(moves), v - beta * curvature, v)
    return v


def _loss_and_gradient(losses: Losses, t: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        loss = losses(t)
        (gradient,) = torch.autograd.grad(loss.sum(), t)
    return loss.detach(), gradient


def _wide(samples: Tensor) -> Tensor:
    return samples[:, None, None, None]
