"""An encoded image taken apart, and the refusal of one that viewers show in different ways."""

from collections.abc import Callable
from dataclasses import dataclass


class NotShown(ValueError):
    """A whole image whose picture is not for sure what a viewer shows; says what it needs, without its name."""


@dataclass(frozen=True)
class Parts:
    """What draws a picture, and what says how it is to be shown.

    Attributes:
        drawing: a file of the same format without anything but the picture.
        exif: EXIF as TIFF bytes, if any.
        profile: ICC profile, if any.
        gamma: exponent of the pixels' curve, where it is not sRGB's.
        palette: number of colours that the file names, 0 where it has no palette.
        check: raises a ValueError where pixels are missing; takes a part of the time that decoding takes.
    """

    drawing: bytes
    exif: bytes | None = None
    profile: bytes | None = None
    gamma: float | None = None
    palette: int = 0
    check: Callable[[], object] = bool
