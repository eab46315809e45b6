"""What may stand before a model: nothing, noise alone, a low-pass filter, or noise and the descent of L_F."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdef.defense import ActiveDefense
from fastdef.evaluation.adaptive import Target
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss

_MAX_STEPS = 400


@dataclass(frozen=True)
class Setting:
    """What a defense is calibrated by; the sigma and the ratio are the paper's.

    Attributes:
        sigma: half width of the noise.
        ratio: of the threshold to the clean L_F of held-out images.
        step: rms, in pixel units, of the first step from held-out noised images. It sets beta: L_F has other units in
            every model, and a beta that moves one by a gray level throws another out of the image.
    """

    sigma: float = 0.075
    ratio: float = 0.92
    step: float = 0.008


def calibrated(model: nn.Module, layer: str, held_out: Tensor, setting: Setting, *, compile: bool) -> ActiveDefense:
    """Active Defense with its beta and threshold by held-out clean images."""
    noised = ActiveDefense(model, layer, sigma=setting.sigma).noised(held_out).requires_grad_()
    (gradient,) = torch.autograd.grad(smoothing_loss(prefix(model, layer)(noised)).sum(), noised)
    beta = setting.step / float(gradient.square().mean().sqrt().clamp_min(1e-12))
    defense = ActiveDefense(model, layer, sigma=setting.sigma, beta=beta, max_steps=_MAX_STEPS, compile=compile)
    defense.calibrate(held_out, ratio=setting.ratio)
    return defense


def noise_alone(defense: ActiveDefense) -> Target:
    """The defense's noise, and no step."""
    return Target.purified(defense.model, lambda images, ids: defense.noised(images, ids=ids), random=True)


class Blur(nn.Module):
    """Gaussian low-pass filter of each channel, the edges reflected.

    Args:
        sigma: of the Gaussian, in pixels.
    """

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        reach = min(8, max(1, math.ceil(3 * sigma)))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        self.register_buffer("kernel", line / line.sum())

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        channels, reach = images.shape[1], len(self.kernel) // 2
        padded = functional.pad(images, [reach] * 4, mode="reflect")
        line = self.kernel.to(images).expand(channels, 1, 1, -1)
        rows = functional.conv2d(padded, line, groups=channels)
        return functional.conv2d(rows, line.transpose(2, 3), groups=channels)


def blur_as_far(images: Tensor, distance: float) -> Blur:
    """The filter that moves images by the rms ``distance`` in pixel units, or the widest where none goes so far."""
    low, high = 0.1, 4.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if rms(Blur(middle)(images) - images) < distance else (low, middle)
    return Blur(low)


def rms(difference: Tensor) -> float:
    """Root of the mean square."""
    return float(difference.square().mean().sqrt())
