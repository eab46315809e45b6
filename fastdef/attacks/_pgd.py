"""Gradient attacks inside an L-infinity ball: FGSM, PGD, MI-FGSM."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdef._validate import check_images, check_labels
from fastdef.attacks._losses import cross_entropy
from fastdef.attacks._model import frozen_eval, gradient_of

Strength = float | Tensor  # one number, or (N,): one an image
Model = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N, classes) logits
Loss = Callable[[Tensor, Tensor], Tensor]  # logits, labels -> (N,)
Observe = Callable[[Tensor], object]  # (N, C, H, W) gradient of a step


def fgsm(model: Model, images: Tensor, labels: Tensor, *, eps: Strength, loss: Loss = cross_entropy) -> Tensor:
    """One step of x + eps * sign(dL/dx), clipped to [0, 1] (Goodfellow et al., 2015).

    Args and errors are those of :func:`pgd`.
    """
    return pgd(model, images, labels, eps=eps, step=eps, steps=1, random_start=False, loss=loss)


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Strength,
    step: Strength,
    steps: int,
    random_start: bool = True,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
    observe: Observe = lambda gradient: None,
) -> Tensor:
    """Projected gradient descent, as attackers call their ascent (Madry et al., 2018).

        x' <- clip(x' + step * sign(dL/dx'), x - eps, x + eps), and to [0, 1];  x' starts at x + U(-eps, eps)

    Args:
        model: images in [0, 1] to logits; run in eval mode, and left as it was.
        images: (N, C, H, W) floats in [0, 1].
        labels: (N,) int64.
        eps: radius in pixel units, for all or (N,) for each image; 0 gives an image back.
        step: step size, likewise.
        steps: number of steps.
        random_start: start anywhere in the ball, else at the image.
        loss: what to raise, (logits, labels) -> (N,).
        generator: of the random start, on the images' device.
        observe: called with each step's gradient; see :class:`fastdef.attacks.GradientRecord`.

    Returns:
        (N, C, H, W) adversarial images: within eps of the images, in [0, 1], without a gradient.

    Raises:
        ValueError: for images, labels or hyperparameters out of their range, or a model that gives no gradient.
    """
    check_attack(images, labels, eps, step, steps, where="pgd")
    radius = column(eps, images)
    start = anywhere(images, radius, generator) if random_start else images
    with frozen_eval(model):
        return projected_ascent(
            _objective(model, loss, labels),
            images,
            eps=radius,
            step=column(step, images),
            steps=steps,
            start=start,
            observe=observe,
        )


def mifgsm(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Strength,
    step: Strength,
    steps: int,
    decay: float = 1.0,
    loss: Loss = cross_entropy,
) -> Tensor:
    """Momentum iterative FGSM, which transfers better than PGD (Dong et al., 2018).

        g <- decay * g + dL/dx' / |dL/dx'|_1;   x' <- clip(x' + step * sign(g))

    ``decay`` is the weight of the past; the other args and errors are those of :func:`pgd`.
    """
    check_attack(images, labels, eps, step, steps, where="mifgsm")
    momentum = torch.zeros_like(images)

    def direction(gradient: Tensor) -> Tensor:
        nonlocal momentum
        size = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
        momentum = decay * momentum + gradient / size
        return momentum.sign()

    with frozen_eval(model):
        return projected_ascent(
            _objective(model, loss, labels),
            images,
            eps=column(eps, images),
            step=column(step, images),
            steps=steps,
            start=images,
            direction=direction,
        )


def projected_ascent(
    objective: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    eps: Strength,
    step: Strength,
    steps: int,
    start: Tensor,
    direction: Callable[[Tensor], Tensor] = torch.sign,
    observe: Observe = lambda gradient: None,
) -> Tensor:
    """The loop inside the attacks: raise ``objective`` inside the ball and [0, 1]. Its caller sees to modes and range.

    Args:
        objective: (N, C, H, W) -> (N,), differentiable.
        images: centres of the balls.
        eps: radius; a number, or a tensor that broadcasts to the images.
        step: step size, likewise.
        steps: number of steps.
        start: where to begin, inside the ball.
        direction: what to do with the gradient before a step.
        observe: called with each step's gradient.

    Raises:
        ValueError: if the objective has no gradient.
    """
    x, radius = start.detach(), torch.as_tensor(eps).to(images)
    for _ in range(steps):
        with torch.enable_grad():
            x.requires_grad_()
            gradient = gradient_of(objective(x), x)
        observe(gradient)
        change = x.detach() + step * direction(gradient) - images  # in this order, as the libraries: the same bits
        x = (images + torch.clamp(change, -radius, radius)).clamp(0, 1)
    return x.detach()


def anywhere(images: Tensor, eps: Strength, generator: torch.Generator | None) -> Tensor:
    """A random start in the ball, and in [0, 1]; ``eps`` broadcasts to the images."""
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (images + eps * (2 * noise - 1)).clamp(0, 1)


def column(value: Strength, images: Tensor) -> Strength:
    """A strength that broadcasts to the images."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.to(images).view(-1, 1, 1, 1)


def _objective(model: Model, loss: Loss, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Images to (N,) losses. On a GPU a label without a class would end the process's use of it: refuse it first."""
    top = int(labels.max())

    def objective(x: Tensor) -> Tensor:
        logits = model(x)
        if logits.shape[-1] <= top:
            raise ValueError(f"attacks need labels that the model has: {logits.shape[-1]} classes, got a label {top}")
        return loss(logits, labels)

    return objective


def check_attack(images: Tensor, labels: Tensor, eps: Strength, step: Strength, steps: int, *, where: str) -> None:
    """Refuse what no attack can be made of.

    Raises:
        ValueError: naming the argument.
    """
    check_images(images, where=where)
    check_labels(labels, len(images), where=where)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{where} needs at least one step, a whole number of them, got {steps}")
    if torch.is_inference_mode_enabled():
        raise ValueError(f"{where} needs gradients, got torch.inference_mode(); torch.no_grad() is no hindrance")
    sizes = {"eps": torch.as_tensor(eps), "step": torch.as_tensor(step)}
    for name, tensor in sizes.items():
        if tensor.ndim and tensor.shape != (len(images),):
            raise ValueError(
                f"{where} needs {name} as a number or of shape ({len(images)},), got {tuple(tensor.shape)}"
            )
    check_eps(eps, where=where)
    if not bool(((sizes["step"] >= 0) & torch.isfinite(sizes["step"])).all()):
        raise ValueError(f"{where} needs a finite step of at least 0, got {step}")


def step_size(eps: float, steps: int) -> float:
    """Of PGD where none is chosen: 2.5 * eps / steps, at most eps (Madry et al., 2018)."""
    return min(eps, 2.5 * eps / steps)


def check_eps(eps: Strength, *, where: str) -> None:
    """Refuse a radius that pixels in [0, 1] have no room for: one in 255ths would be an attack of the whole range.

    Raises:
        ValueError: if any is under 0, above 1 or NaN.
    """
    tensor = torch.as_tensor(eps)
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise ValueError(f"{where} needs eps in pixel units, such as 8/255, from 0 to 1, got {eps}")
