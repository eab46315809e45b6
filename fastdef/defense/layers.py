"""Which layer to smooth: what each costs, and what noise does to its features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdef._validate import check_images
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss
from fastdef.runtime import check_model, device_and_dtype, forward

BETA, FEATURES = 80.0, 160 * 32 * 32  # the paper's step size, and M of the layer that it is for
_LARGEST_SHARE = 0.5  # of a forward; a step costs about twice its layer's


@dataclass(frozen=True)
class LayerChoice:
    """A layer that could be smoothed.

    Attributes:
        name: of the submodule.
        features: M, values of one image.
        cost: FLOPs up to its output, as a share of those of the whole network.
        loss: mean L_F of the images.
        noised: mean L_F of the same images with noise.
        lift: (noised - loss) over the deviation of L_F from image to image: how far noise lifts it out of what images
            differ by anyway.
        beta: the paper's step size, scaled by M, since a step is beta / M times the sign field's gradient.
    """

    name: str
    features: int
    cost: float
    loss: float
    noised: float
    lift: float
    beta: float


def choose_layers(model: nn.Module, images: Tensor, *, sigma: float = 0.075, seed: int = 0) -> list[LayerChoice]:
    """Every layer that could be smoothed, the best first: the one whose L_F noise lifts most, within half a forward.

    A layer can be if it is called once, on the way of a batch, gives (N, C, H, W) features, and has a convolution or a
    matrix product at or before it: the normalized image is none. The order is of what noise does alone; whether
    smoothing helps against an attack is for ``fastdef evaluate-adaptive``.

    Args:
        model: a classifier in eval mode.
        images: (N, C, H, W) clean images in [0, 1], two or more.
        sigma: half width of the noise.
        seed: of the noise.

    Raises:
        ValueError: for images that are not that, a model in training, or one without such a layer.
    """
    images = check_images(images, where="choose_layers")
    check_model(model)
    if len(images) < 2:
        raise ValueError(f"choose_layers needs two images or more, got {len(images)}")
    device, precision = device_and_dtype(model)
    clean = images.detach().to(device, precision)
    generator = torch.Generator().manual_seed(seed)
    noise = (2 * torch.rand(images.shape, generator=generator) - 1) * sigma
    noised = clean + noise.to(clean)
    whole = _flops(lambda: forward(model, clean[:1]))
    names = _candidates(model, clean[:2])
    measured = [_measured(model, name, clean, noised, whole) for name in names]
    measured = [choice for choice in measured if choice.cost > 0]
    if not measured:
        raise ValueError("choose_layers needs a layer that is called once and gives (N, C, H, W) features, got none")
    choices = {(choice.features, choice.cost, choice.loss): choice for choice in reversed(measured)}  # the outermost
    return sorted(choices.values(), key=lambda choice: (choice.cost > _LARGEST_SHARE, -choice.lift))


def _measured(model: nn.Module, name: str, clean: Tensor, noised: Tensor, whole: int) -> LayerChoice:
    network = prefix(model, name)
    features = forward(network, clean[:1]).numel()
    losses, lifted = (smoothing_loss(forward(network, images)).double() for images in (clean, noised))
    lift = float((lifted.mean() - losses.mean()) / losses.std().clamp_min(1e-12))
    cost = _flops(lambda: forward(network, clean[:1])) / max(1, whole)
    means = float(losses.mean()), float(lifted.mean())
    return LayerChoice(name, features, cost, *means, lift, BETA * features / FEATURES)


def _flops(run: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, where there is one

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _candidates(model: nn.Module, images: Tensor) -> list[str]:
    """Modules of the two upper levels that are called once and give a feature map of the batch."""
    modules = {name: module for name, module in model.named_modules() if name and name.count(".") < 2}
    outputs: dict[str, list[object]] = {name: [] for name in modules}
    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: outputs[name].append(output))
        for name, module in modules.items()
    ]
    try:
        forward(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, calls in outputs.items() if len(calls) == 1 and _is_map(calls[0], len(images))]


def _is_map(output: object, count: int) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and len(output) == count and output.shape[2:].numel() > 1
