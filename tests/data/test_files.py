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


@pytest.mark.parametrize("name", ["a\nb.png", "a\x0bb.png", "a\u2028b.png"])
def test_an_error_is_one_line_whatever_the_file_is_called(tmp_path, name):
    (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "missing\n").mkdir()

    for path in (tmp_path / name, tmp_path / "missing\n"):
        with pytest.raises(ValueError, match=r"(a|missing)\\") as caught:
            list(load_images([path], channels=3, size=(8, 8)))
        assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_read_is_told_and_the_rest_is_given(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"")
    told = []

    def tell(path, error):
        told.append((path.name, str(error)))

    loaded = load_images([tmp_path, tmp_path / "missing.png"], channels=3, size=(8, 8), on_error=tell)

    assert [path.name for path, _ in loaded] == ["0.png", "2.png"]
    assert [name for name, _ in told] == ["1.png", "missing.png"]
    assert "1.png is not a whole PNG, JPEG" in told[0][1]


def test_an_image_file_that_is_not_read_is_refused_by_name(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")

    with pytest.raises(ValueError, match=r"a\.gif needs to be of a kind that is read \(\.png, .*convert it to PNG"):
        list(load_images(tmp_path, channels=3, size=(8, 8)))
