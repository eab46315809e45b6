"""Which way up a picture is to be shown: EXIF's tag 0x112."""

import struct

from fastdef.data._parts import NotShown

_TAG, _SHORT = 0x112, 3
UPRIGHT = 1


def orientation(exif: bytes | None) -> int:
    """1 to 8; 1, upright, where EXIF does not say or is none.

    Raises:
        ValueError: where it says so in a way that viewers read differently.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4] if exif else b"")
    if not exif or order is None or len(exif) < 10:
        return UPRIGHT
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start) if start + 2 <= len(exif) else (0,)
    places = [start + 2 + 12 * number for number in range(count) if start + 14 + 12 * number <= len(exif)]
    found = [struct.unpack_from(order + "HHIH", exif, place) for place in places]
    values = [(kind, length, value) for tag, kind, length, value in found if tag == _TAG]
    if not values:
        return UPRIGHT
    if len(values) > 1 or values[0][:2] != (_SHORT, 1) or not 1 <= values[0][2] <= 8:
        raise NotShown(f"needs one EXIF orientation from 1 to 8, got {values}"[:200])
    return values[0][2]
