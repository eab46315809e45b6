"""Tensors as what a browser shows."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_LARGEST_MAP = 64  # cells a side


def png(image: Tensor) -> str:
    """A data URL of a (C, H, W) image, cut to [0, 1]; of one channel or three, the first where there are others."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels[0]
    file = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def roughness(features: Tensor) -> list[list[float]]:
    """The mean over channels of |F - mean F| for (C, H, W) features, at most 64 x 64: its mean is L_F."""
    rough = (features - features.mean()).abs().mean(0, keepdim=True)
    height, width = (min(size, _LARGEST_MAP) for size in rough.shape[1:])
    cells: list[list[float]] = adaptive_avg_pool2d(rough, (height, width))[0].tolist()
    return [[round(cell, 5) for cell in row] for row in cells]
