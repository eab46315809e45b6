"""BMP files: those that every viewer shows alike."""

import struct

from fastdef.data._parts import NotShown, Parts

SIGNATURE = b"BM"
_PLAIN = (0, 3)  # compressions: none, and bit fields
_SRGB = (b"BGRs", b" niW")  # colour spaces: sRGB, and the system's


def take_apart(encoded: bytes) -> Parts:
    """A BMP as it is.

    Raises:
        ValueError: for a file that is cut off, is packed by runs, which may leave pixels out, or is of other colours.
    """
    if len(encoded) < 30:
        raise ValueError("the file is cut off")
    start, header = struct.unpack_from("<II", encoded, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", encoded, 18)
        return _whole(encoded, start + _row(width, bits) * height)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", encoded.ljust(34, b"\0"), 18)
    if compression not in _PLAIN:
        raise NotShown(f"needs to be a BMP that is not compressed, got compression {compression}")
    if header >= 108 and encoded[70:74] not in _SRGB:
        raise NotShown(f"needs colours of sRGB, got the colour space {encoded[70:74]!r}; convert it to sRGB")
    return _whole(encoded, start + _row(width, bits) * abs(height))


def _row(width: int, bits: int) -> int:
    """Bytes of a row, which ends on a multiple of four."""
    return -(-width * bits // 32) * 4


def _whole(encoded: bytes, end: int) -> Parts:
    if len(encoded) < end:
        raise ValueError(f"it needs {end} bytes, got {len(encoded)}")
    return Parts(encoded)
