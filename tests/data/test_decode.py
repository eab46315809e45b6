import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fastdef.data._decode import decode, decode_all


def saved(array, ending="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, ending, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def test_gray_of_sixteen_bits_is_scaled_and_not_clipped():
    encoded = saved(np.array([[0, 257, 32768, 65000, 65535]], dtype=np.uint16))

    assert decode(encoded, mode="L", name="x").tolist() == [[[0, 1, 128, 253, 255]]]


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (60000, 60000)])  # over our bound, and over Pillow's
def test_a_bomb_is_refused_before_it_is_unpacked(width, height):
    encoded = png_header(width, height) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    with pytest.raises(ValueError, match=rf"^bomb .*({width}|{width * height})") as caught:
        decode(encoded, mode="L", name="bomb")
    assert "\n" not in str(caught.value)


def test_a_format_that_is_neither_png_nor_jpeg_is_refused():
    encoded = saved(np.zeros((4, 4), dtype=np.uint8), "GIF")

    with pytest.raises(ValueError, match=f"x is not a whole PNG or JPEG, got {len(encoded)} bytes of something else"):
        decode(encoded, mode="L", name="x")


@pytest.mark.parametrize("ending", ["PNG", "JPEG"])
def test_damage_anywhere_gives_an_image_or_a_refusal_and_nothing_else(ending):
    encoded = saved(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), ending)
    refusals = []

    for place in range(len(encoded)):
        damaged = encoded[:place] + bytes([encoded[place] ^ 0xFF]) + encoded[place + 1 :]
        try:
            decode(damaged, mode="RGB", name="x")
        except ValueError as error:
            refusals.append(str(error))

    assert len(refusals) > 10
    assert all(refusal.startswith("x ") and "\n" not in refusal for refusal in refusals)


# One image, a task's worth, one more, and more than are under way at a time.
@pytest.mark.parametrize("count", [1, 128, 129, 4097])
def test_many_images_come_in_their_order(count):
    values = torch.arange(count) % 251
    encoded = [saved(np.full((1, 2), value, dtype=np.uint8)) for value in range(251)]

    images = decode_all(((str(row), encoded[value]) for row, value in enumerate(values)), count, mode="L")

    assert images.shape == (count, 1, 1, 2)
    assert images.is_contiguous()
    assert torch.equal(images[:, 0, 0, 1], values.to(torch.uint8))
