"""JPEG files taken apart: the segments that draw, and what the others say of how the picture is to be shown."""

import struct
from collections.abc import Iterator

from fastdef.data._parts import NotShown, Parts

SIGNATURE = b"\xff\xd8\xff"
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APP0, _APP1, _APP2, _ADOBE, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_PROFILE = b"ICC_PROFILE\0"


def take_apart(encoded: bytes) -> Parts:
    """The drawing segments, EXIF and colour profile of a JPEG.

    Raises:
        ValueError: for a file that is damaged, holds several pictures, or says something twice.
    """
    drawing, exif, profile = bytearray(b"\xff\xd8"), [], []
    for marker, body in _segments(encoded):
        if marker == _APP1 and body.startswith(b"Exif\0"):
            exif.append(body[6:])
        elif marker == _APP2 and body.startswith(_PROFILE):
            profile.append(body[len(_PROFILE) :])
        elif marker == _APP2 and body.startswith(b"MPF\0"):
            raise NotShown("needs to be one picture, got several (MPO); save the first as JPEG")
        if marker == _SOS:
            drawing += body
        elif _draws(marker, body):
            drawing += struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    if len(exif) > 1:
        raise NotShown("needs EXIF once, got it twice")
    return Parts(bytes(drawing), exif[0] if exif else None, _whole(profile))


def _segments(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment; of the first scan on, all the rest of the file, its marker included."""
    place = 2
    while True:
        while encoded[place : place + 2] == b"\xff\xff":
            place += 1
        start, marker, length = struct.unpack(">BBH", encoded[place : place + 4].ljust(4, b"\0"))
        if start != 0xFF or marker in (0, _SOI, _EOI) or length < 2 or place + 2 + length > len(encoded):
            raise ValueError("the file is cut off or damaged")
        if marker == _SOS:
            yield marker, encoded[place:]
            return
        yield marker, encoded[place + 4 : place + 2 + length]
        place += 2 + length


def _draws(marker: int, body: bytes) -> bool:
    """Of the application segments two tell how colours are stored."""
    if marker == _APP0:
        return body.startswith(b"JFIF\0")
    return body.startswith(b"Adobe") if marker == _ADOBE else not (_APP0 <= marker <= _APP15 or marker == _COMMENT)


def _whole(parts: list[bytes]) -> bytes | None:
    """A profile out of its numbered parts."""
    if not parts:
        return None
    if [part[:2] for part in sorted(parts)] != [bytes([n + 1, len(parts)]) for n in range(min(len(parts), 255))]:
        raise ValueError("parts of its colour profile are missing")
    return b"".join(part[2:] for part in sorted(parts))
