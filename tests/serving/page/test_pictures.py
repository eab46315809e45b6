import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastdef.serving.page.pictures import png, roughness


def pixels(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(data)))))


def test_a_colour_image_is_a_png_of_its_pixels():
    image = torch.arange(3 * 4 * 6).view(3, 4, 6) / 255

    assert torch.equal(pixels(png(image)), torch.arange(72).view(3, 4, 6).permute(1, 2, 0).to(torch.uint8))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_of_another_number_of_channels_the_first_is_shown(channels):
    image = torch.arange(channels * 4 * 6).view(channels, 4, 6) / 255

    assert torch.equal(pixels(png(image)), torch.arange(24).view(4, 6).to(torch.uint8))


def test_values_are_rounded_and_those_beyond_black_and_white_are_cut():
    image = torch.tensor([[[-5.0, -0.001, 0.0, 0.499 / 255, 0.501 / 255, 0.5, 254.4 / 255, 1.0, 1.001, 9.0]]])

    assert pixels(png(image)).tolist() == [[0, 0, 0, 0, 1, 128, 254, 255, 255, 255]]


def test_a_map_is_the_distance_from_the_mean_of_all_averaged_over_channels():
    features = torch.tensor([[[0.0, 4.0, 8.0]], [[0.0, 0.0, 0.0]]])  # their mean is 2

    assert roughness(features) == [[2.0, 2.0, 4.0]]


def test_a_map_is_right_to_five_digits():
    features = torch.tensor([[[0.0, 0.123456]]])

    assert roughness(features)[0] == pytest.approx([0.061728, 0.061728], abs=6e-6)


@pytest.mark.parametrize(
    ("size", "shown"), [((64, 64), (64, 64)), ((128, 3), (64, 3)), ((3, 128), (3, 64)), ((65, 70), (64, 64))]
)
def test_a_large_map_is_made_smaller_and_keeps_its_mean(size, shown):
    features = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))

    told = torch.tensor(roughness(features))

    assert told.shape == shown
    assert float(told.mean()) == pytest.approx(float((features - features.mean()).abs().mean()), rel=1e-2)
