"""The attack on AFA that knows of its weight generator (AFA, Section 5.2, adaptive attack)."""

import torch
from torch import Tensor, nn

from fastdef.attacks._losses import cross_entropy
from fastdef.attacks._model import frozen_eval
from fastdef.attacks._pgd import Strength, anywhere, check_attack, column, projected_ascent
from fastdef.nn import fusing_weights

RATIOS = (10.0, 5.0, 2.0, 1.0, 1 / 2, 1 / 5, 1 / 10)  # of the cross-entropy to the weight's part: the paper's seven


def adaptive_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Strength,
    step: Strength,
    steps: int,
    ratio: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """PGD that also pushes the fusing weight to the clean branch, which is the weaker one.

        raised:  CE(z, y) - (1 / ratio) * mean over the weights of BCE(W0, 1)

    The paper says "joint gradient ascent" on cross-entropy and BCE, and not to which side W0 goes: to 1, so that an
    attacked image passes for a clean one.

    Args:
        model: made by ``convert_to_afa``.
        images: (N, C, H, W) floats in [0, 1].
        labels: (N,) int64.
        eps: radius in pixel units, for all or (N,) for each image.
        step: step size, likewise.
        steps: number of steps.
        ratio: of the cross-entropy to the weight's part, see ``RATIOS``.
        generator: of the random start, on the images' device.

    Returns:
        (N, C, H, W) adversarial images, as of :func:`fastdef.attacks.pgd`.

    Raises:
        ValueError: as ``pgd`` does; for a model without a fusing weight, or a ratio that is not positive.
    """
    check_attack(images, labels, eps, step, steps, where="adaptive_pgd")
    if not ratio > 0:
        raise ValueError(f"adaptive_pgd needs a positive ratio, got {ratio}")

    def objective(x: Tensor) -> Tensor:
        logits, w0 = fusing_weights(model, x)
        passes_for_clean = torch.log(w0.clamp_min(1e-12)).mean(1)  # -BCE(W0, 1)
        return cross_entropy(logits, labels) + passes_for_clean / ratio

    radius = column(eps, images)
    with frozen_eval(model):
        return projected_ascent(
            objective,
            images,
            eps=radius,
            step=column(step, images),
            steps=steps,
            start=anywhere(images, radius, generator),
        )
