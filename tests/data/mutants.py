"""Image files with a change: another mode, a chunk or segment more, twice or gone, another tag, a byte flipped."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SRGB_CORNERS = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_P3_CORNERS = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks):
    """A file of (kind, body) pairs."""
    return _SIGNATURE + b"".join(chunk(kind, body) for kind, body in chunks)


def chunks(content):
    """The (kind, body) pairs of a file."""
    place, pairs = 8, []
    while place < len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        pairs.append((kind, content[place + 8 : place + 8 + length]))
        place += 12 + length
    return pairs


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def raw_png(kind, depth, width, height, rng, *before):
    """A PNG of any colour type and depth, of random pixels."""
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind] * depth * width
    rows = b"".join(b"\0" + rng.randbytes((bits + 7) // 8) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return png((b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def exif(value, kind=3, count=1, order="<", again=()):
    """TIFF bytes with an orientation, and as often again as there are more values."""
    entries = [(0x112, kind, count, number) for number in (value, *again)]
    packed = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IH", 8, len(entries)) + packed + bytes(4)


_P3 = {  # of Display P3, as a profile has them
    b"rXYZ": (0.51512, 0.2412, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.1571, 0.06657, 0.78407),
}


def profile(power=None, corners=None):
    """sRGB's ICC profile, with a plain power for its curve and other corners where they are given."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(struct.unpack(">I", content[128:132])[0]):
        name, start, _ = struct.unpack(">4sII", content[132 + 12 * number : 144 + 12 * number])
        if power is not None and name in (b"rTRC", b"gTRC", b"bTRC"):
            content[start : start + 16] = b"para" + bytes(4) + struct.pack(">HHi", 0, 0, int(power * 65536))
        if corners is not None and name in corners:
            content[start + 8 : start + 20] = struct.pack(">3i", *(round(value * 65536) for value in corners[name]))
    return bytes(content)


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _noise(rng, mode):
    width, height = rng.randint(1, 16), rng.randint(1, 16)
    values = np.frombuffer(rng.randbytes(width * height * 4), dtype=np.uint8).reshape(height, width, 4)
    return Image.fromarray(values[:, :, :3]).convert(mode) if mode in "1LP" else Image.fromarray(values).convert(mode)


def _sound(rng):
    """An ending, and a file of that kind."""
    kind = rng.choice([".png"] * 5 + [".jpg"] * 4 + [".webp", ".bmp"])
    if kind == ".png" and rng.random() < 0.5:
        colour, depths = rng.choice(
            [(0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))]
        )
        depth = rng.choice(depths)
        palette = [(b"PLTE", rng.randbytes(3 << depth))] if colour == 3 else []
        return kind, raw_png(colour, depth, rng.randint(1, 16), rng.randint(1, 16), rng, *palette)
    if kind == ".png":
        return kind, saved(_noise(rng, rng.choice(["1", "L", "LA", "P", "RGB", "RGBA"])), "PNG")
    if kind == ".jpg":
        options = {"quality": rng.randint(30, 95), "progressive": rng.random() < 0.3, "subsampling": rng.randint(0, 2)}
        return kind, saved(_noise(rng, rng.choice(["L", "RGB", "CMYK"])), "JPEG", **options)
    if kind == ".webp":
        more = rng.choice([{}, {"exif": b"Exif\0\0" + _exif(rng)}, {"icc_profile": _icc(rng)}])
        return kind, saved(_noise(rng, rng.choice(["RGB", "RGBA"])), "WEBP", lossless=rng.random() < 0.5, **more)
    return kind, saved(_noise(rng, rng.choice(["1", "L", "P", "RGB", "RGBA"])), "BMP")


def _exif(rng):
    return exif(
        rng.randint(0, 9),
        kind=rng.choice([3, 3, 3, 4, 1]),
        count=rng.choice([1, 1, 1, 2]),
        order=rng.choice("<>"),
        again=rng.choice([(), (), (), (3,)]),
    )


def _icc(rng):
    return rng.choice([profile(), profile(1.0), profile(2.6), profile(corners=_P3), profile()[:200], b"none"])


def _png_chunk(rng):
    """A chunk that says how to show the picture, truly or not."""
    text = rng.choice([b"transparency", b"gamma", b"icc_profile", b"exif", b"Comment", b"Raw profile type exif"])
    return rng.choice(
        [
            (b"gAMA", struct.pack(">I", rng.choice([45455, 45455, 45000, 100000, 22727, 0]))),
            (b"cHRM", struct.pack(">8I", *rng.choice([_SRGB_CORNERS, _P3_CORNERS, (0,) * 8]))),
            (b"sRGB", bytes([rng.randint(0, 4)])),
            (b"iCCP", b"icc\0\0" + zlib.compress(_icc(rng))),
            (b"cICP", bytes(rng.choice([(1, 13, 0, 1), (12, 13, 0, 1), (9, 16, 0, 1)]))),
            (b"tRNS", rng.randbytes(rng.choice([1, 2, 6, 16]))),
            (b"tRNS", bytes([255] * 4)),
            (b"bKGD", rng.randbytes(rng.choice([1, 2, 6]))),
            (b"PLTE", rng.randbytes(3 * rng.choice([1, 2, 16, 200]))),
            (b"eXIf", _exif(rng)),
            (b"pHYs", struct.pack(">IIB", rng.randint(1, 99), rng.randint(1, 99), rng.randint(0, 1))),
            (b"sBIT", bytes([rng.randint(1, 8)] * rng.randint(1, 4))),
            (b"acTL", struct.pack(">II", rng.choice([1, 2]), 0)),
            (b"tEXt", text + b"\0" + rng.randbytes(9)),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='3'/>"),
            (b"prIv", rng.randbytes(5)),
        ]
    )


def _changed_png(rng, content):
    pairs = chunks(content)
    way = rng.choice(["add", "add", "add", "late", "twice", "gone", "swap", "flip"])
    place = rng.randrange(len(pairs))
    if way == "add":
        pairs.insert(1, _png_chunk(rng))
    elif way == "late":
        pairs.insert(len(pairs) - 1, _png_chunk(rng))
    elif way == "twice":
        pairs.insert(place, pairs[place])
    elif way == "gone":
        del pairs[place]
    elif way == "swap":
        other = rng.randrange(len(pairs))
        pairs[place], pairs[other] = pairs[other], pairs[place]
    else:
        pairs[place] = pairs[place][0], _flipped(rng, pairs[place][1])
    return png(*pairs)


def _jpeg_segment(rng):
    return rng.choice(
        [
            segment(0xE1, b"Exif\0\0" + _exif(rng)),
            segment(0xE1, b"Exif\0\0" + _exif(rng)),
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='3'/>"),
            segment(0xE2, b"ICC_PROFILE\0\1\1" + _icc(rng)),
            segment(0xE2, b"ICC_PROFILE\0\1\2" + _icc(rng)),
            segment(0xE2, b"MPF\0" + rng.randbytes(20)),
            segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([rng.randint(0, 3)])),
            segment(0xE0, b"JFIF\0\1\1" + rng.randbytes(7)),
            segment(0xFE, rng.randbytes(9)),
            b"\xff",
        ]
    )


def _changed_jpeg(rng, content):
    if rng.random() < 0.7:
        place = 2 if rng.random() < 0.5 else content.index(b"\xff\xdb")
        return content[:place] + _jpeg_segment(rng) + content[place:]
    return _flipped(rng, content)


def _flipped(rng, content):
    if not content:
        return content
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _changed(rng, ending, content):
    if ending == ".png":
        return _changed_png(rng, content)
    if ending == ".jpg":
        return _changed_jpeg(rng, content)
    return _flipped(rng, content)


def mutants(count, seed=0):
    """Endings and contents of files, the same each time: one in five is sound, others have one or two changes."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ending, content = _sound(rng)
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            content = _changed(rng, ending, content)
        made.append((ending, content))
    return made
