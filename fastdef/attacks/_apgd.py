"""Auto-PGD: ascent with momentum whose step halves by itself (Croce & Hein, 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fastdef.attacks._goal import Query, QueryResult, targeted, untargeted, white_box
from fastdef.attacks._losses import cross_entropy
from fastdef.attacks._model import frozen_eval
from fastdef.attacks._pgd import Loss, Model, check_attack

_MOMENTUM = 0.25  # the paper's 1 - alpha
_RHO = 0.75  # a window in which fewer of the steps than this raised the loss halves the step


def apgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    iterations: int = 100,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD on one loss: ``cross_entropy``, ``dlr`` or ``margin``. No step size to choose.

    Args:
        model: images in [0, 1] to logits; run in eval mode, and left as it was.
        images: (N, C, H, W) floats in [0, 1].
        labels: (N,) int64.
        eps: radius in pixel units.
        iterations: steps of each restart; an image leaves at the first wrong answer.
        restarts: starts, each anywhere in the ball.
        loss: what to raise, (logits, labels) -> (N,).
        generator: of the starts, on the images' device.

    Returns:
        (N, C, H, W): wrongly answered points where any was found, else those of the highest loss.

    Raises:
        ValueError: for images, labels or hyperparameters out of their range, or a model that gives no gradient.
    """
    check_attack(images, labels, eps, eps, iterations, where="apgd")
    if restarts < 1:
        raise ValueError(f"apgd needs at least one restart, got {restarts}")
    with frozen_eval(model):
        asks = [white_box(model, untargeted(labels, loss))] * restarts
        return search(asks, images, eps=eps, iterations=iterations, generator=generator)


def apgd_targeted(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    iterations: int = 100,
    targets: int = 9,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD towards each of the ``targets`` likeliest other classes in turn, by the targeted DLR loss.

    Args, result and errors are those of :func:`apgd`; and the model needs four classes.
    """
    check_attack(images, labels, eps, eps, iterations, where="apgd_targeted")
    with frozen_eval(model):
        with torch.no_grad():
            logits = model(images)
        asks = [white_box(model, targeted(labels, target)) for target in likeliest(logits, labels, targets)]
        return search(asks, images, eps=eps, iterations=iterations, generator=generator)


def likeliest(logits: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """The likeliest classes but the label's, (N,) int64 each, the first first.

    Raises:
        ValueError: for fewer than four classes, which the targeted DLR loss needs.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted DLR loss needs at least four classes, got {logits.shape[1]}")
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    ordered = logits.masked_fill(own, -torch.inf).argsort(dim=1, descending=True)[:, :-1]
    return list(ordered[:, :count].unbind(1))


def search(
    asks: Sequence[Query],
    images: Tensor,
    *,
    eps: float,
    iterations: int,
    patience: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD with each of ``asks`` in turn, on the images that still stand, and the best point of all.

    Args:
        asks: what is raised; see :func:`fastdef.attacks.white_box`.
        images: centres of the balls.
        eps: radius in pixel units.
        iterations: of each.
        patience: iterations that an image stays after all of a point's draws were answered wrong.
        generator: of the starts.
    """
    best = _Found.nothing(images)
    for ask in asks:
        (rows,) = torch.nonzero(best.right > 0, as_tuple=True)
        if len(rows):
            _walk(ask, images, rows, best, eps, iterations, patience, generator)
    return best.x


@dataclass
class _Found:
    """The best point of each image so far: answered right by the fewest draws, and of those the highest loss."""

    x: Tensor
    right: Tensor
    loss: Tensor

    @classmethod
    def nothing(cls, images: Tensor) -> "_Found":
        right = torch.full_like(images[:, 0, 0, 0], torch.inf)
        return cls(images.clone(), right, -right)

    def offer(self, rows: Tensor, x: Tensor, query: QueryResult) -> None:
        right, loss = self.right[rows], self.loss[rows]
        better = (query.right < right) | ((query.right == right) & (query.loss > loss))
        rows = rows[better]
        self.x[rows], self.right[rows], self.loss[rows] = x[better], query.right[better], query.loss[better]


@dataclass
class _Climb:
    """Where each image is on its way; all are (n, ...)."""

    rows: Tensor
    x: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    step: Tensor
    best_x: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    best_at_check: Tensor
    rises: Tensor
    halved: Tensor
    fallen: Tensor  # iterations since all draws were wrong

    def keep(self, stay: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stay])


def _walk(
    ask: Query,
    images: Tensor,
    rows: Tensor,
    best: _Found,
    eps: float,
    iterations: int,
    patience: int,
    generator: torch.Generator | None,
) -> None:
    climb = _begin(ask, images, rows, best, eps, generator)
    window, shrink, least = (max(int(share * iterations), 1) for share in (0.22, 0.03, 0.06))
    since = 0
    for iteration in range(iterations):
        stay = climb.fallen <= patience
        if not bool(stay.all()):
            climb.keep(stay)
        if not len(climb.rows):
            return
        query = _advance(climb, ask, images, eps, first=iteration == 0)
        best.offer(climb.rows, climb.x, query)
        since += 1
        if since == window:
            _check(climb, window)
            since, window = 0, max(window - shrink, least)


def _begin(
    ask: Query, images: Tensor, rows: Tensor, best: _Found, eps: float, generator: torch.Generator | None
) -> _Climb:
    noise = 2 * torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)[rows] - 1
    noise = noise / noise.flatten(1).abs().amax(1)[:, None, None, None]  # onto the ball's surface, as AutoAttack does
    x = (images[rows] + eps * noise).clamp(0, 1)
    query = ask(x, rows)
    best.offer(rows, x, query)
    nothing = torch.zeros_like(query.loss)
    return _Climb(
        rows=rows,
        x=x,
        previous=x,
        gradient=query.gradient,
        loss=query.loss,
        step=torch.full_like(x[:, :1, :1, :1], 2 * eps),
        best_x=x,
        best_gradient=query.gradient,
        best_loss=query.loss,
        best_at_check=query.loss,
        rises=nothing,
        halved=torch.ones_like(nothing, dtype=torch.bool),
        fallen=(query.right == 0).to(nothing),
    )


def _advance(climb: _Climb, ask: Query, images: Tensor, eps: float, *, first: bool) -> QueryResult:
    centre = images[climb.rows]
    low, high = (centre - eps).clamp(0, 1), (centre + eps).clamp(0, 1)
    inertia = 0.0 if first else _MOMENTUM
    step = torch.clamp(climb.x + climb.step * climb.gradient.sign(), low, high) - climb.x
    x = torch.clamp(climb.x + (1 - inertia) * step + inertia * (climb.x - climb.previous), low, high)
    query = ask(x, climb.rows)
    climb.previous, climb.x, climb.gradient = climb.x, x, query.gradient
    climb.rises = climb.rises + (query.loss > climb.loss)
    climb.loss = query.loss
    climb.fallen = torch.where((climb.fallen > 0) | (query.right == 0), climb.fallen + 1, climb.fallen)
    better = query.loss > climb.best_loss
    wide = better[:, None, None, None]
    climb.best_x = torch.where(wide, x, climb.best_x)
    climb.best_gradient = torch.where(wide, query.gradient, climb.best_gradient)
    climb.best_loss = torch.where(better, query.loss, climb.best_loss)
    return query


def _check(climb: _Climb, window: int) -> None:
    """Halve the step, and go back to the best point, where the loss rose too seldom or its best has stood still."""
    swings = climb.rises <= _RHO * window
    idle = ~climb.halved & (climb.best_at_check >= climb.best_loss)
    halve = swings | idle
    wide = halve[:, None, None, None]
    climb.step = torch.where(wide, climb.step / 2, climb.step)
    climb.x = torch.where(wide, climb.best_x, climb.x)
    climb.gradient = torch.where(wide, climb.best_gradient, climb.gradient)
    climb.halved, climb.best_at_check = halve, climb.best_loss
    climb.rises = torch.zeros_like(climb.rises)
