"""WebP files taken apart: alpha in every case, and what the file says of how the picture is to be shown.

A lossless picture may deny its alpha and have it all the same; browsers show it, Pillow drops it. So it is made to
admit it.
"""

import struct

from fastdef.data._parts import NotShown, Parts

_ALPHA, _MOVES = 0x10, 0x02  # in the extended header
_HAS_ALPHA = 0x10  # in the fourth byte after the signature of a lossless picture


def is_webp(encoded: bytes) -> bool:
    """Whether it begins like one."""
    return encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP"


def take_apart(encoded: bytes) -> Parts:
    """The picture with its alpha, EXIF and colour profile of a WebP.

    Raises:
        ValueError: for a file that is damaged, moves, or says something twice.
    """
    drawing, said, place = bytearray(encoded), {b"EXIF": b"", b"ICCP": b""}, 12
    while place + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, place)
        body = encoded[place + 8 : place + 8 + length]
        if len(body) < length or (kind in (b"VP8X", b"VP8L") and length < 5):
            raise ValueError("the file is cut off")
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and body[0] & _MOVES):
            raise NotShown("needs to be one picture, got an animation")
        if said.get(kind):
            raise NotShown(f"needs {kind.decode()} once, got it twice")
        if kind in said:
            said[kind] = body
        if kind == b"VP8X":
            drawing[place + 8] |= _ALPHA
        if kind == b"VP8L":
            drawing[place + 8 + 4] |= _HAS_ALPHA
        place += 8 + length + length % 2
    exif = said[b"EXIF"].removeprefix(b"Exif\0\0")
    return Parts(bytes(drawing), exif or None, said[b"ICCP"] or None)
