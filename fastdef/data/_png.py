"""PNG files taken apart: the chunks that draw, and what the others say of how the picture is to be shown.

Pillow keeps what any text chunk says beside what the file says of itself, under the same names. So it is given the
chunks that draw and no others.
"""

import struct
import zlib
from collections.abc import Iterator

from fastdef.data._parts import NotShown, Parts

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DRAWING = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_COLOUR = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_STAGES = {b"IHDR": 0, **dict.fromkeys(_COLOUR, 1), b"PLTE": 2, b"tRNS": 3, b"bKGD": 3, b"IDAT": 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SRGB_CODE = bytes([1, 13, 0, 1])  # BT.709's primaries, sRGB's curve, RGB, full range
_SRGB_CORNERS = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_SRGB_GAMMA = 45455


def take_apart(encoded: bytes) -> Parts:
    """The drawing chunks, EXIF and colour of a PNG.

    Raises:
        ValueError: for a file that is damaged, moves, or whose chunks viewers read in different ways.
    """
    chunks = list(_chunks(encoded))
    _check_order([kind for kind, _ in chunks])
    own = dict(chunks)
    _check_header(own[b"IHDR"])
    _check_transparency(own)
    drawing = b"".join(_chunk(kind, body) for kind, body in chunks if kind in _DRAWING)
    profile = _profile(own[b"iCCP"]) if b"iCCP" in own and b"cICP" not in own else None
    packed = [body for kind, body in chunks if kind == b"IDAT"]
    return Parts(
        drawing=SIGNATURE + drawing,
        exif=own.get(b"eXIf"),
        profile=profile,
        gamma=_gamma(own),
        palette=len(own.get(b"PLTE", b"")) // 3,
        check=lambda: _check_pixels(packed, own[b"IHDR"]),
    )


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk, up to the last."""
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", _slice(encoded, place, 8))
        body = _slice(encoded, place + 8, length)
        if zlib.crc32(kind + body) != struct.unpack(">I", _slice(encoded, place + 8 + length, 4))[0]:
            raise ValueError(f"the checksum of {kind!r} is wrong")
        yield kind, body
        place += 12 + length


def _slice(encoded: bytes, start: int, length: int) -> bytes:
    if start + length > len(encoded):
        raise ValueError("the file is cut off")
    return encoded[start : start + length]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _check_order(kinds: list[bytes]) -> None:
    """Refuse what is said twice or out of its place, of which each viewer takes another part."""
    if b"acTL" in kinds:
        raise NotShown("needs to be one picture, got an animation")
    stages = [_STAGES[kind] for kind in kinds if kind in _STAGES]
    if kinds[0] != b"IHDR" or stages != sorted(stages) or b"eXIf" in kinds[_first(kinds, b"IDAT") :]:
        raise NotShown(f"needs its chunks in their order, got {_names(kinds)}")
    twice = [kind for kind in (*_STAGES, b"eXIf") if kind != b"IDAT" and kinds.count(kind) > 1]
    unknown = [kind for kind in kinds if kind[0] < 0x60 and kind not in _DRAWING]  # a capital: not to be passed over
    if twice or unknown or _first(kinds, b"IDAT") + kinds.count(b"IDAT") != len(kinds) - kinds[::-1].index(b"IDAT"):
        raise NotShown(f"needs each chunk once, and none that is unknown, got {_names(kinds)}")


def _first(kinds: list[bytes], kind: bytes) -> int:
    if kind not in kinds:
        raise ValueError(f"{_names([kind])} is missing")
    return kinds.index(kind)


def _names(kinds: list[bytes]) -> str:
    return " ".join(kind.decode("ascii", "replace") for kind in kinds)[:100]


def _check_header(header: bytes) -> None:
    if len(header) != 13 or any(header[10:12]) or header[12] > 1:
        raise ValueError("its header is none")


def _check_transparency(own: dict[bytes, bytes]) -> None:
    """Refuse palettes and transparent colours that are no such, which viewers pass over and Pillow does not."""
    depth, kind = own[b"IHDR"][8:10]
    colours, key = len(own.get(b"PLTE", b"")), own.get(b"tRNS", b"")
    if colours % 3 or colours > 3 << min(depth, 8) or (kind == 3) != (colours > 0 and kind not in (2, 6)):
        raise ValueError("its palette is none")
    if kind == 3 and len(key) > colours // 3:
        raise ValueError("its palette has fewer colours than transparencies")
    if key and kind in (0, 2) and (depth != 8 or len(key) != 2 + 2 * kind or any(key[::2])):
        raise NotShown(f"needs a transparent colour of 8 bits, got {depth} bits and {key.hex()}")
    if key and kind not in (0, 2, 3):
        raise NotShown("needs one kind of transparency, got two")
    if b"bKGD" in own and len(own[b"bKGD"]) != {2: 6, 3: 1, 6: 6}.get(kind, 2):
        raise ValueError("its background (bKGD) is none")


def _profile(body: bytes) -> bytes:
    name, _, packed = body.partition(b"\0")
    try:
        unpacking = zlib.decompressobj()
        profile = unpacking.decompress(packed[1:], 1 << 24)
    except zlib.error as error:
        raise ValueError("the colour profile is damaged") from error
    if not 1 <= len(name) <= 79 or packed[:1] != b"\0" or not unpacking.eof:
        raise ValueError("the colour profile is damaged")
    return profile


def _gamma(own: dict[bytes, bytes]) -> float | None:
    """Exponent of the pixels' curve where it is not sRGB's; as Chromium, which reads cHRM beside gAMA alone."""
    if own.get(b"cICP", _SRGB_CODE) != _SRGB_CODE:
        raise NotShown("needs colours of sRGB, got others (cICP); convert it to sRGB")
    if not own.keys().isdisjoint((b"cICP", b"iCCP", b"sRGB")) or b"gAMA" not in own:
        return None
    gamma = int.from_bytes(own[b"gAMA"], "big")
    corners = struct.unpack(">8i", own[b"cHRM"]) if len(own.get(b"cHRM", b"")) == 32 else _SRGB_CORNERS
    if abs(gamma - _SRGB_GAMMA) > 500 or max(abs(a - b) for a, b in zip(corners, _SRGB_CORNERS, strict=True)) > 100:
        raise NotShown("needs colours of sRGB, got others (gAMA, cHRM); convert it to sRGB")
    return 1e5 / gamma if b"cHRM" in own else None


def _check_pixels(packed: list[bytes], header: bytes) -> None:
    """Refuse pixels that end early, of which Pillow makes black ones."""
    unpacking = zlib.decompressobj()
    missing = _length(header)
    for body in packed:
        while body and missing > 0:
            missing -= len(unpacking.decompress(body, 1 << 20))
            body = unpacking.unconsumed_tail
    if missing > 0:
        raise ValueError(f"{missing} bytes of its pixels are missing")


def _length(header: bytes) -> int:
    """Bytes of all rows, of each pass where it is interlaced."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(kind, 1)
    total = 0
    for left, top, right, down in _PASSES if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return total
