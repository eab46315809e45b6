"""Features in units of their own deviation: the smoothing loss of these cannot be lowered by shrinking a layer."""

import torch
from torch import Tensor, nn

from fastdef.nn._branches import record_conversion
from fastdef.nn._conversions import register_conversion
from fastdef.nn._layers import find_layer, first_group
from fastdef.nn._prefix import prefix

_CHILD = "normalized"
_SIDE = 32  # of the image by which the channels are found


def normalized(layer: str | None = None) -> str:
    """The name of the layer that ``normalize_features`` puts behind ``layer``."""
    return f"{layer}.{_CHILD}"


@register_conversion("normalized_features")
def normalize_features(model: nn.Module, *, layer: str | None = None) -> nn.Module:
    """Put a batch norm without weights behind ``layer``, for the smoothing loss alone to look at.

        F'_c = (F_c - E[F_c]) / sqrt(Var[F_c] + eps)        E, Var: of the batch; of training, in eval mode

    Its output, the layer ``normalized(layer)``, is what to train, to calibrate and to defend with; the classifier goes
    on from ``layer`` and answers as before. In training, L_F of F' does not change when a channel of F is scaled or
    shifted; in eval mode F' is one affine a channel, which folds into the convolution before it. In place.

    Args:
        model: any classifier.
        layer: whose output is (N, C, H, W) features; the first group if None.

    Returns:
        The model.

    Raises:
        ValueError: if there is no such layer, its output is no (N, C, H, W), or this was done before.
    """
    layer = first_group(model) if layer is None else layer
    followed = find_layer(model, layer, where="normalize_features")
    if hasattr(followed, _CHILD):
        raise ValueError(f"normalize_features needs a layer that it has not been given before, got {layer!r}")
    weight = next(model.parameters())
    channels = _channels(model, layer, like=weight)
    norm = nn.BatchNorm2d(channels, affine=False, device=weight.device, dtype=weight.dtype)
    followed.add_module(_CHILD, norm.train(followed.training))
    followed.register_forward_hook(_look)
    record_conversion(model, name="normalized_features", layer=layer)
    return model


def _look(module: nn.Module, inputs: object, output: Tensor) -> None:
    module.get_submodule(_CHILD)(output)


@torch.no_grad()
def _channels(model: nn.Module, layer: str, *, like: Tensor) -> int:
    """Of the layer's output, by one image in eval mode, so that no statistics change; then as it was."""
    modes = {module: module.training for module in model.modules()}
    image = like.new_zeros(1, getattr(model, "in_channels", 3), _SIDE, _SIDE)
    try:
        features = prefix(model.eval(), layer)(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if features.ndim != 4:
        raise ValueError(
            f"normalize_features needs a layer of (N, C, H, W) features, but {layer!r} gave {tuple(features.shape)}"
        )
    return features.shape[1]
