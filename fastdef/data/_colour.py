"""Colours as they are stored, to sRGB as they are shown."""

import io
import struct
from functools import lru_cache
from typing import Any

import numpy as np

from fastdef.data._errors import one_line
from fastdef.data._parts import NotShown

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the profile's name, Pillow's mode

_D50 = (0.9642, 1.0, 0.8249)  # the white that every profile is relative to


def to_srgb(image: Any, profile: bytes) -> Any:
    """An image without alpha -> RGB.

    Raises:
        ValueError: for a profile that is damaged, or of other colours than the image has.
    """
    from PIL import ImageCms

    gray = image.mode == "L"
    try:
        space, transform = _transform(profile)
        if gray and space == "RGB":
            image = image.convert("RGB")
        if image.mode != space:
            raise NotShown(f"needs a colour profile for {image.mode}, got one for {space}")
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError) as error:
        raise NotShown(f"needs a whole colour profile (ICC), got another: {one_line(error)}") from error


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, Any]:
    """The mode of the images it takes, and what makes them sRGB."""
    from PIL import ImageCms

    _check_tags(profile)
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = _SPACES.get(own.profile.xcolor_space.strip(), own.profile.xcolor_space)
    transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), space, "RGB")
    if space != "CMYK":
        _check_grays(transform, space)
    return space, transform


def _check_tags(profile: bytes) -> None:
    """Refuse a profile with a part that is not in it: browsers pass over the whole profile, littlecms over the part.

    Raises:
        NotShown: if there is one.
    """
    header = profile[:132].ljust(132, b"\0")
    size, count = struct.unpack(">I", header[:4])[0], struct.unpack(">I", header[128:])[0]
    table = profile[132 : 132 + 12 * min(count, 1000)]
    tags = list(struct.iter_unpack(">4sII", table[: len(table) // 12 * 12]))
    inside = all(132 + 12 * count <= start <= start + length <= len(profile) for _, start, length in tags)
    white = max(abs(a / 65536 - b) for a, b in zip(struct.unpack(">3i", header[68:80]), _D50, strict=True)) < 0.01
    if not white or header[36:40] != b"acsp" or size != len(profile) or len(tags) != count or not inside:
        raise NotShown("needs a whole colour profile (ICC), got one that is cut off or damaged")


def _check_grays(transform: Any, space: str) -> None:
    """Refuse a damaged profile that is whole in form, of which each viewer makes other colours.

    Raises:
        NotShown: if grays come out coloured, white is not white, or more light makes a darker gray.
    """
    from PIL import Image, ImageCms

    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert(space)
    shown = np.array(ImageCms.applyTransform(ramp, transform))[0].astype(int)
    if np.ptp(shown, axis=1).max() > 8 or shown[255].min() < 250 or np.diff(shown.sum(1)).min() < 0:
        raise NotShown("needs a sound colour profile, got one that colours grays; convert it to sRGB")


def from_gamma(image: Any, exponent: float) -> Any:
    """Pixels on a plain power's curve -> on sRGB's."""
    light = np.linspace(0, 1, 256) ** exponent
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return image.point((shown * 255).round().astype(int).tolist() * len(image.getbands()))
