"""An encoded image as a viewer shows it: upright, opaque, in sRGB, eight bits; or refused."""

import io
from typing import Any

import numpy as np

from fastdef.data import _bmp, _jpeg, _png, _webp
from fastdef.data._colour import from_gamma, to_srgb
from fastdef.data._orientation import UPRIGHT, orientation
from fastdef.data._parts import NotShown, Parts

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
Colour = tuple[int, int, int]
_OPAQUE = {"1": "L", "L": "L", "RGB": "RGB", "CMYK": "CMYK", "P": "RGB"}
_WITH_ALPHA = {"LA": "L", "PA": "RGB", "RGBA": "RGB"}
_MODES = (*_OPAQUE, *_WITH_ALPHA, "I", "I;16", "I;16B")


class Picture:
    """An encoded image, of which nothing but the header is read yet.

    Args:
        encoded: PNG, JPEG, WebP, BMP or PNM.

    Attributes:
        size: (H, W), upright.
        gray: it has no colours.
        treatments: what :meth:`shown` did so far to show it.

    Raises:
        NotShown: where viewers do not agree on it, or see more than one picture.
        Exception: of whatever kind, where it is damaged.
    """

    def __init__(self, encoded: bytes) -> None:
        from PIL import Image

        self._parts = _take_apart(encoded)
        self._image: Any = Image.open(io.BytesIO(self._parts.drawing), formats=FORMATS)
        if (frames := getattr(self._image, "n_frames", 1)) != 1:
            raise NotShown(f"needs to be one picture, got {frames}")
        if self._image.mode not in _MODES:
            raise NotShown(f"needs to be gray, RGB or CMYK, got {self._image.mode}")
        self._turn = orientation(self._parts.exif)
        if self._turn != UPRIGHT and self._image.format == "WEBP":
            raise NotShown("needs to be stored upright: viewers differ on a WebP's EXIF orientation")
        width, height = self._image.size
        self.size = (width, height) if self._turn > 4 else (height, width)
        self.gray = self._image.mode in ("1", "L", "LA") or self._image.mode.startswith("I")
        self.treatments: list[str] = []

    def shown(self, mode: str, background: Colour | None) -> Any:
        """The picture in Pillow's mode "L" or "RGB"; what is not opaque lies on the background.

        Raises:
            NotShown: where it is not opaque and there is no background, or its colours are not known.
            Exception: of whatever kind, where it is damaged.
        """
        image, alpha = self._split(self._eight_bits(self._image))
        image = self._in_srgb(image)
        if alpha is not None and alpha.getextrema()[0] < 255:
            image = self._on(background, image, alpha)
        if self._turn != UPRIGHT:
            self.treatments.append("turned upright, as EXIF says")
            image = image.transpose(_turns()[self._turn])
        if mode == "L" and image.mode != "L":
            self.treatments.append("made gray")
        return image.convert(mode)

    def _eight_bits(self, image: Any) -> Any:
        """Scale 16-bit gray, which Pillow would clip."""
        from PIL import Image

        image.load()
        self._parts.check()
        if image.mode == "P" and self._parts.palette and image.getextrema()[1] >= self._parts.palette:
            raise ValueError("a pixel has a colour that the palette has not")
        if not image.mode.startswith("I"):
            return image
        self.treatments.append("brought from 16 bits to 8")
        return Image.fromarray((np.array(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8))

    @staticmethod
    def _split(image: Any) -> tuple[Any, Any]:
        """Gray, RGB or CMYK, and the alpha that is there."""
        if image.mode in _OPAQUE and "transparency" not in image.info:
            return image.convert(_OPAQUE[image.mode]), None
        whole = image.convert("RGBA")
        return whole.convert("RGB"), whole.getchannel("A")

    def _in_srgb(self, image: Any) -> Any:
        if self._parts.profile is not None:
            self.treatments.append("converted from a colour profile to sRGB")
            return to_srgb(image, self._parts.profile)
        if self._parts.gamma is not None:
            self.treatments.append("converted from a gamma to sRGB")
            return from_gamma(image, self._parts.gamma)
        if image.mode == "CMYK":
            self.treatments.append("converted from CMYK without a profile")
            return image.convert("RGB")
        return image

    def _on(self, background: Colour | None, image: Any, alpha: Any) -> Any:
        from PIL import Image

        if background is None:
            count = sum(alpha.histogram()[:255])
            needed = "needs every pixel opaque, or a background to lie on (--background white)"
            raise NotShown(f"{needed}, got {count} of {alpha.width * alpha.height} below")
        self.treatments.append(f"laid on the background {background}")
        return Image.composite(image.convert("RGB"), Image.new("RGB", image.size, background), alpha)


def _take_apart(encoded: bytes) -> Parts:
    """By the first bytes; PNM has nothing to take apart."""
    if _webp.is_webp(encoded):
        return _webp.take_apart(encoded)
    for container in (_png, _jpeg, _bmp):
        if encoded.startswith(container.SIGNATURE):
            return container.take_apart(encoded)
    return Parts(encoded)


def _turns() -> dict[int, Any]:
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
