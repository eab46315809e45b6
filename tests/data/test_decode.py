import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastdef.data import Decoder
from tests.data.mutants import chunk, exif, png, profile
from tests.data.mutants import saved as written


def saved(array, ending="PNG", **options):
    return written(Image.fromarray(array), ending, **options)


def png_header(width, height):
    return png((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)))


def test_gray_of_sixteen_bits_is_scaled_and_not_clipped():
    encoded = saved(np.array([[0, 257, 32768, 65000, 65535]], dtype=np.uint16))

    assert Decoder().decode(encoded, mode="L", name="x").tolist() == [[[0, 1, 128, 253, 255]]]


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (60000, 60000)])  # over our bound, and over Pillow's
def test_a_bomb_is_refused_before_it_is_unpacked(width, height):
    encoded = png_header(width, height) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    with pytest.raises(ValueError, match=rf"^bomb .*({width}|{width * height})") as caught:
        Decoder().decode(encoded, mode="L", name="bomb")
    assert "\n" not in str(caught.value)


def test_a_format_that_is_not_read_is_refused():
    encoded = saved(np.zeros((4, 4), dtype=np.uint8), "GIF")

    with pytest.raises(
        ValueError, match=f"x is not a whole PNG, JPEG, WebP, BMP or PNM, got {len(encoded)} bytes of something else"
    ):
        Decoder().decode(encoded, mode="L", name="x")


@pytest.mark.parametrize("ending", ["PNG", "JPEG"])
def test_damage_anywhere_gives_an_image_or_a_refusal_and_nothing_else(ending):
    encoded = saved(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), ending)
    refusals = []

    for place in range(len(encoded)):
        damaged = encoded[:place] + bytes([encoded[place] ^ 0xFF]) + encoded[place + 1 :]
        try:
            Decoder().decode(damaged, mode="RGB", name="x")
        except ValueError as error:
            refusals.append(str(error))

    assert len(refusals) > 10
    assert all(refusal.startswith("x ") and "\n" not in refusal for refusal in refusals)


# One image, a task's worth, one more, and more than are under way at a time.
@pytest.mark.parametrize("count", [1, 128, 129, 4097])
def test_many_images_come_in_their_order(count):
    values = torch.arange(count) % 251
    encoded = [saved(np.full((1, 2), value, dtype=np.uint8)) for value in range(251)]

    images = Decoder().decode_all(((str(row), encoded[value]) for row, value in enumerate(values)), count, mode="L")

    assert images.shape == (count, 1, 1, 2)
    assert images.is_contiguous()
    assert torch.equal(images[:, 0, 0, 1], values.to(torch.uint8))


@pytest.mark.parametrize("ending", ["PNG", "JPEG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_turned_upright(ending, turn):
    upright = np.kron(np.array([[0, 255, 0], [0, 0, 255]], dtype=np.uint8), np.ones((8, 8), dtype=np.uint8))
    # what is stored, by the tag's definition: 0th row and 0th column of the picture
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T}
    stored |= {6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1]}
    encoded = saved(np.ascontiguousarray(stored[turn]), ending, exif=b"Exif\0\0" + exif(turn))
    decoder = Decoder()

    image = decoder.decode(encoded, mode="L", name="x", size=(16, 24))

    assert (image[0].int() - torch.from_numpy(upright).int()).abs().max() <= 8  # JPEG's quality
    assert decoder.notes == (("1 image was turned upright, as EXIF says",) if turn > 1 else ())


@pytest.mark.parametrize("tag", [exif(0), exif(9), exif(3, kind=4), exif(3, count=2), exif(3, again=(1,))])
def test_an_orientation_that_viewers_read_differently_is_refused(tag):
    encoded = saved(np.zeros((2, 2), dtype=np.uint8), exif=b"Exif\0\0" + tag)

    with pytest.raises(ValueError, match="x needs one EXIF orientation from 1 to 8, got"):
        Decoder().decode(encoded, mode="L", name="x")


def transparent(mode):
    """Black where it is opaque, and white to him who drops the alpha where it is not; the left half is opaque."""
    image = Image.new("RGBA", (4, 2), (255, 255, 255, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 2))
    if mode == "P":
        image = Image.new("P", (4, 2), 1)
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.paste(0, (0, 0, 2, 2))
        return image, {"transparency": b"\xff\0"}
    return image.convert(mode), {"transparency": 255 if mode == "L" else (255, 255, 255)} if mode in (
        "L",
        "RGB",
    ) else {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_not_opaque_is_refused_or_lies_on_the_background_that_is_named(mode):
    image, options = transparent(mode)
    encoded = written(image, "PNG", **options)
    decoder = Decoder(background="#808080")

    shown = decoder.decode(encoded, mode="RGB", name="x")

    assert shown[:, 0].tolist() == [[0, 0, 128, 128]] * 3
    assert "1 image was laid on the background (128, 128, 128)" in decoder.notes
    with pytest.raises(ValueError, match=r"x needs every pixel opaque, or a background .*, got 4 of 8 below"):
        Decoder().decode(encoded, mode="RGB", name="x")


def test_alpha_that_is_opaque_all_over_is_taken():
    encoded = written(Image.new("RGBA", (2, 2), (1, 2, 3, 255)), "PNG")

    assert Decoder().decode(encoded, mode="RGB", name="x")[:, 0, 0].tolist() == [1, 2, 3]


def test_a_lossless_webp_cannot_deny_its_alpha():
    encoded = bytearray(written(Image.new("RGBA", (4, 4), (9, 99, 9, 100)), "WEBP", lossless=True, exact=True))
    encoded[24] &= 0xEF
    assert Image.open(io.BytesIO(encoded)).mode == "RGB"

    with pytest.raises(ValueError, match="x needs every pixel opaque"):
        Decoder().decode(bytes(encoded), mode="RGB", name="x")


@pytest.mark.parametrize("text", ["nonsense", "#ffffff80", ""])
def test_a_background_that_is_no_opaque_colour_is_refused(text):
    with pytest.raises(ValueError, match="a background needs to be an opaque colour"):
        Decoder(background=text)


@pytest.mark.parametrize(("kind", "got"), [("PNG", "an animation"), ("WEBP", "an animation"), ("MPO", "several")])
def test_several_frames_are_refused(kind, got):
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 200)]
    encoded = written(frames[0], kind, save_all=True, append_images=frames[1:])

    with pytest.raises(ValueError, match=f"x needs to be one picture, got {got}"):
        Decoder().decode(encoded, mode="RGB", name="x")


def test_a_profile_is_converted_to_srgb():
    light = np.full((2, 2, 3), 64, dtype=np.uint8)
    decoder = Decoder()

    image = decoder.decode(saved(light, icc_profile=profile(1.0)), mode="RGB", name="x")

    assert image[0, 0, 0] == 137  # sRGB's value of a quarter of the light
    assert decoder.notes == ("1 image was converted from a colour profile to sRGB",)


def test_a_gray_image_with_a_profile_of_colours_stays_gray():
    encoded = saved(np.full((2, 2), 64, dtype=np.uint8), icc_profile=profile(1.0))

    assert Decoder().decode(encoded, mode="L", name="x").flatten().tolist() == [137] * 4


@pytest.mark.parametrize(
    ("content", "need"),
    [
        (b"none", "cut off or damaged"),
        (profile()[:300], "cut off or damaged"),
        (profile(corners={b"rXYZ": (0.4, 9000.0, 0.01)}), "colours grays"),
    ],
)
def test_a_damaged_profile_is_refused(content, need):
    with pytest.raises(ValueError, match=f"x needs a .* colour profile.*, got one that (is )?{need}"):
        Decoder().decode(saved(np.zeros((2, 2, 3), dtype=np.uint8), icc_profile=content), mode="RGB", name="x")


GRAY = (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0))
PIXELS = ((b"IDAT", zlib.compress(b"\0\x40\x80")), (b"IEND", b""))
CORNERS = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


# Pillow keeps texts beside what the file says of itself: these would have made it transparent, or another colour.
@pytest.mark.parametrize("key", [b"transparency", b"icc_profile", b"exif", b"gamma"])
def test_a_text_does_not_pass_for_what_the_file_says_of_itself(key):
    encoded = png(GRAY, (b"tEXt", key + b"\0\0"), *PIXELS)

    assert Decoder().decode(encoded, mode="L", name="x").tolist() == [[[0x40, 0x80]]]


@pytest.mark.parametrize(
    ("chunks", "values"),
    [
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], [0x40, 0x80]),
        ([(b"gAMA", struct.pack(">I", 45455))], [0x40, 0x80]),
        ([(b"cHRM", CORNERS)], [0x40, 0x80]),
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", CORNERS)], [62, 129]),  # 2.2's curve, not sRGB's
        ([(b"cICP", bytes([1, 13, 0, 1]))], [0x40, 0x80]),
    ],
)
def test_a_png_says_its_colours_in_several_ways(chunks, values):
    assert Decoder().decode(png(GRAY, *chunks, *PIXELS), mode="L", name="x").flatten().tolist() == values


@pytest.mark.parametrize(
    ("chunks", "need"),
    [
        ([(b"gAMA", struct.pack(">I", 100000))], "colours of sRGB, got others"),
        ([(b"cICP", bytes([12, 13, 0, 1]))], "colours of sRGB, got others"),
        ([(b"eXIf", exif(1)), (b"eXIf", exif(3))], "each chunk once"),
        ([(b"sRGB", b"\0"), (b"sRGB", b"\0")], "each chunk once"),
        ([(b"QQQQ", b"")], "none that is unknown"),
        ([(b"tRNS", b"\0\x40"), (b"gAMA", struct.pack(">I", 45455))], "its chunks in their order"),
        ([(b"tRNS", b"\1\x40")], "a transparent colour of 8 bits"),
    ],
)
def test_a_png_that_viewers_read_differently_is_refused(chunks, need):
    with pytest.raises(ValueError, match=f"x needs .*{need}"):
        Decoder().decode(png(GRAY, *chunks, *PIXELS), mode="L", name="x")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (9, 8)])
def test_pixels_that_end_early_are_refused_and_are_not_black(interlaced, width, height):
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced))
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    plane = np.full((height, width), 7, dtype=np.uint8)
    parts = [plane[top::down, left::right] for left, top, right, down in passes] if interlaced else [plane]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)

    whole = Decoder().decode(png(header, (b"IDAT", zlib.compress(rows)), PIXELS[1]), mode="L", name="x")

    assert torch.equal(whole[0], torch.from_numpy(plane))
    for cut in (1, 1 + parts[-1].shape[1]):  # a pixel, the last row
        with pytest.raises(ValueError, match=r"x is not a whole PNG.*: (\d+ bytes of its pixels|image file)"):
            Decoder().decode(png(header, (b"IDAT", zlib.compress(rows[:-cut])), PIXELS[1]), mode="L", name="x")


def test_a_bmp_packed_by_runs_or_of_other_colours_is_refused():
    encoded = bytearray(written(Image.new("RGB", (4, 4)), "BMP"))
    encoded[30] = 1

    with pytest.raises(ValueError, match="x needs to be a BMP that is not compressed"):
        Decoder().decode(bytes(encoded), mode="RGB", name="x")


def test_what_was_done_is_counted_over_all_threads():
    turned, plain = (saved(np.zeros((2, 2), dtype=np.uint8), exif=b"Exif\0\0" + exif(value)) for value in (3, 1))
    decoder = Decoder()

    decoder.decode_all((("x", turned if row % 2 else plain) for row in range(1000)), 1000, mode="L")

    assert decoder.notes == ("500 images were turned upright, as EXIF says",)
