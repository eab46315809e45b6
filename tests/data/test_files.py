import numpy as np
import pytest
import torch
from PIL import Image

from fastdef.data import load_images


def save(path, size=(8, 8), mode="RGB", value=51):
    shape = size if mode == "L" else (*size, 3)
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 3), ("RGB", 1), ("L", 1)])
def test_files_come_with_the_channels_asked_for(tmp_path, mode, channels):
    ((path, image),) = load_images([save(tmp_path / "a.png", mode=mode)], channels=channels, size=(8, 8))

    assert path.name == "a.png"
    torch.testing.assert_close(image, torch.full((channels, 8, 8), 0.2))


def test_a_folder_means_its_images_in_order(tmp_path):
    for name in ("b.png", "a.jpg", "c.txt"):
        save(tmp_path / name) if name != "c.txt" else (tmp_path / name).write_text("no image")

    assert [path.name for path, _ in load_images([tmp_path], channels=3, size=(8, 8))] == ["a.jpg", "b.png"]


def test_another_size_is_scaled_where_asked(tmp_path):
    ((_, image),) = load_images([save(tmp_path / "a.png", (16, 4))], channels=3, size=(8, 8), resize=True)

    torch.testing.assert_close(image, torch.full((3, 8, 8), 0.2))


def test_bad_files_are_refused_by_name(tmp_path):
    broken = save(tmp_path / "broken.png")
    broken.write_bytes(broken.read_bytes()[:50])
    (tmp_path / "empty").mkdir()
    cases = {
        broken: "broken.png is not a whole PNG, JPEG",
        save(tmp_path / "small.png", (4, 4)): "small.png needs to be 8 x 8 pixels, got 4 x 4",
        tmp_path / "empty": "empty needs at least one",
        tmp_path / "none.png": "none.png needs to be an image file",
    }

    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            list(load_images([path], channels=3, size=(8, 8)))


def test_a_file_of_absurd_length_is_refused_unread(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**29 + 1)  # a hole, that takes no room

    with pytest.raises(ValueError, match=f"a.png needs at most {2**29} bytes, got {2**29 + 1}"):
        list(load_images(tmp_path, channels=3, size=(8, 8)))


def test_a_name_that_the_system_refuses_is_a_value_error():
    with pytest.raises(ValueError, match=r"a{200} needs to be there and readable: File name too long"):
        list(load_images("a" * 300, channels=3, size=(8, 8)))


def test_one_path_need_not_be_in_a_list(tmp_path):
    ((path, _),) = load_images(str(save(tmp_path / "a.png")), channels=3, size=(8, 8))

    assert path == tmp_path / "a.png"


def test_other_channels_than_gray_and_colour_are_refused(tmp_path):
    with pytest.raises(ValueError, match="images have 1 or 3 channels, got 4"):
        list(load_images([save(tmp_path / "a.png")], channels=4, size=(8, 8)))
