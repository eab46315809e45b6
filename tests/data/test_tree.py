import os

import pytest
import torch
from PIL import Image

from fastdef.assets import ASSETS
from fastdef.data import load_dataset, load_images


def test_a_folder_of_images_by_class_reads_under_any_name(tmp_path, pictures, save_picture):
    images = pictures(3, 3, 8)
    save_picture(tmp_path / "test" / "dog" / "b.PNG", images[0])
    save_picture(tmp_path / "test" / "cat" / "a.png", images[1])
    save_picture(tmp_path / "test" / "cat" / "c.png", images[2])

    dataset = load_dataset("pets", "test", root=tmp_path)

    assert dataset.classes == ("cat", "dog")
    found = {(int(label), bytes(image.flatten())) for image, label in zip(dataset.images, dataset.labels, strict=True)}
    assert found == {(1, bytes(images[0].flatten())), (0, bytes(images[1].flatten())), (0, bytes(images[2].flatten()))}


def test_a_jpeg_comes_close_to_the_picture(tmp_path, save_picture):
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(3, 32, 32)
    save_picture(tmp_path / "test" / "ramp" / "1.jpeg", ramp)

    image = load_dataset("ramps", "test", root=tmp_path).images[0]

    assert (image.int() - ramp.int()).abs().max() <= 8  # what JPEG's quality of 75 leaves


def test_a_label_means_the_same_in_each_split(tmp_path, pictures, save_picture):
    for name in ("ant", "bee", "cat"):
        save_picture(tmp_path / "train" / name / "1.png", pictures(1)[0])
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1)[0])

    dataset = load_dataset("animals", "test", root=tmp_path)

    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.labels.tolist() == [2]


def test_a_class_that_training_lacks_is_refused(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "train" / "ant" / "1.png", pictures(1)[0])
    save_picture(tmp_path / "test" / "bee" / "1.png", pictures(1)[0])

    with pytest.raises(ValueError, match=r"test needs a class of the training split, got bee, which .*train has not"):
        load_dataset("animals", "test", root=tmp_path)


def test_images_stay_gray_where_all_are(tmp_path, pictures, save_picture):
    gray = pictures(2, 1, 8)
    for number in range(2):
        save_picture(tmp_path / "test" / "one" / f"{number}.png", gray[number])

    assert torch.equal(load_dataset("grays", "test", root=tmp_path).images, gray)


def test_one_gray_image_does_not_take_the_colour_of_the_others(tmp_path, pictures, save_picture):
    gray, colour = pictures(1, 1, 8)[0], pictures(1, 3, 8)[0]
    save_picture(tmp_path / "test" / "one" / "1.png", gray)
    save_picture(tmp_path / "test" / "one" / "2.png", colour)

    images = load_dataset("both", "test", root=tmp_path).images

    assert torch.equal(images, torch.stack([gray.expand(3, -1, -1), colour]))


def test_a_known_data_set_as_a_folder_keeps_its_channels(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "frog" / "1.png", pictures(1, 1)[0])

    assert load_dataset("cifar10", "test", root=tmp_path).images.shape == (1, 3, 32, 32)


def test_hidden_files_and_folders_are_passed_over(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1)[0])
    (tmp_path / "test" / "cat" / "._1.png").write_bytes(b"no image")
    (tmp_path / "test" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "test" / ".checkpoints").mkdir()

    dataset = load_dataset("pets", "test", root=tmp_path)

    assert (len(dataset), dataset.classes) == (1, ("cat",))


def test_a_class_without_images_is_refused(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1)[0])
    (tmp_path / "test" / "dog").mkdir()

    with pytest.raises(ValueError, match=r"dog needs at least one image file \(\.png, .*\), got none"):
        load_dataset("pets", "test", root=tmp_path)


def test_images_of_several_sizes_are_scaled_where_a_size_is_given_as_a_single_file_is(tmp_path, pictures, save_picture):
    files = [save_picture(tmp_path / "cat" / f"{size}.png", pictures(1, size=size)[0]) for size in (8, 9, 21)]

    dataset = load_dataset("pets", "all", root=tmp_path, size=8)

    alone = [image for _, image in load_images(sorted(files), channels=3, size=(8, 8), resize=True)]
    assert dataset.images.shape == (3, 3, 8, 8)
    torch.testing.assert_close(dataset.floats(0, 3), torch.stack(alone), rtol=0, atol=0.5 / 255 + 1e-6)


def test_another_size_is_refused_where_the_files_have_one():
    with pytest.raises(ValueError, match=r"images by class are scaled to a size, and .* in 28 x 28"):
        load_dataset("fashion-mnist", "test", root=ASSETS, size=32)

    assert load_dataset("fashion-mnist", "test", root=ASSETS, size=28).images.shape[2:] == (28, 28)


def test_images_of_several_sizes_are_refused_by_name(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1, size=8)[0])
    save_picture(tmp_path / "test" / "cat" / "2.png", pictures(1, size=9)[0])

    with pytest.raises(ValueError, match=r"2\.png needs the size of the images before it, got \(9, 9\) after \(8, 8\)"):
        load_dataset("pets", "test", root=tmp_path)


@pytest.mark.parametrize("keep", [0, 20, -60])
def test_a_cut_off_image_is_refused_by_name(tmp_path, pictures, save_picture, keep):
    file = save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1)[0])
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(ValueError, match=r"1\.png is not a whole PNG, JPEG"):
        load_dataset("pets", "test", root=tmp_path)


def test_a_folder_that_lacks_the_split_is_refused(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "train" / "cat" / "1.png", pictures(1)[0])

    with pytest.raises(
        ValueError, match=r"pets's test split \(test/<class>/\*\.png\), got images by class of the split train"
    ):
        load_dataset("pets", "test", root=tmp_path)


@pytest.mark.parametrize("name", ["pets", "cifar10"])
def test_a_folder_without_splits_is_the_split_all(tmp_path, pictures, save_picture, name):
    images = pictures(2)
    save_picture(tmp_path / "cat" / "1.png", images[0])
    save_picture(tmp_path / "horse" / "1.png", images[1])
    (tmp_path / "notes").write_text("no class")

    dataset = load_dataset(name, "all", root=tmp_path)

    assert torch.equal(dataset.images, images)
    assert [dataset.classes[label] for label in dataset.labels] == ["cat", "horse"]
    assert dataset.split == "all"


def test_a_folder_without_splits_is_neither_training_nor_test_data(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "cat" / "1.png", pictures(1)[0])

    for split in ("train", "test", "validation"):
        with pytest.raises(ValueError, match=r"<class>/\*\.png\), got images by class of the split all"):
            load_dataset("pets", split, root=tmp_path)


def test_a_folder_with_splits_is_not_the_split_all(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "train" / "cat" / "1.png", pictures(1)[0])
    save_picture(tmp_path / "train" / "1.png", pictures(1)[0])

    with pytest.raises(
        ValueError, match=r"pets's all split \(<class>/\*\.png\), got images by class of the split train"
    ):
        load_dataset("pets", "all", root=tmp_path)


def test_folders_named_by_a_data_sets_classes_are_numbered_as_in_its_other_formats(tmp_path, pictures, save_picture):
    for name in ("Ankle_boot", "bag", "trouser"):
        save_picture(tmp_path / "test" / name / "1.png", pictures(1, 1, 28)[0])

    dataset = load_dataset("fashion-mnist", "test", root=tmp_path)

    assert dataset.labels.tolist() == [9, 8, 1]
    assert len(dataset.classes) == 10


def test_folders_that_differ_in_how_they_are_written_alone_are_two_classes(tmp_path, pictures, save_picture):
    for name in ("Bag", "bag"):
        save_picture(tmp_path / "test" / name / "1.png", pictures(1, 1, 28)[0])

    dataset = load_dataset("fashion-mnist", "test", root=tmp_path)

    assert (dataset.classes, dataset.labels.tolist()) == (("Bag", "bag"), [0, 1])


def test_folders_named_otherwise_are_the_classes_themselves(tmp_path, pictures, save_picture):
    for name in ("bag", "zebra"):
        save_picture(tmp_path / "test" / name / "1.png", pictures(1, 1, 28)[0])

    assert load_dataset("fashion-mnist", "test", root=tmp_path).classes == ("bag", "zebra")


def test_folders_that_are_numbers_are_in_the_order_of_text_unless_asked(tmp_path, pictures, save_picture):
    for number in range(11):
        save_picture(tmp_path / "test" / str(number) / "1.png", pictures(1, 1, 4)[0])

    as_text = load_dataset("digits", "test", root=tmp_path)
    as_numbers = load_dataset("digits", "test", root=tmp_path, class_order="number")

    assert as_text.classes == tuple(sorted(map(str, range(11))))  # as torchvision's ImageFolder
    assert any("10 before 2" in note for note in as_text.notes)
    assert as_numbers.classes == tuple(map(str, range(11)))
    assert as_numbers.notes == ()


def test_an_order_of_numbers_needs_numbers(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1, 1, 4)[0])

    with pytest.raises(ValueError, match="needs folders that are numbers for the class order number, got cat"):
        load_dataset("pets", "test", root=tmp_path, class_order="number")
    with pytest.raises(ValueError, match="a class order among text and number, got 'size'"):
        load_dataset("pets", "test", root=tmp_path, class_order="size")


def test_images_deeper_in_a_class_and_of_every_ending_are_read(tmp_path, pictures):
    endings = ("png", "jpg", "jpeg", "webp", "bmp", "ppm", "JPE")
    for number, ending in enumerate(endings):
        file = tmp_path / "test" / "cat" / ("deep/er" if number % 2 else ".") / f"{number}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy()).save(file)

    dataset = load_dataset("pets", "test", root=tmp_path)

    assert (len(dataset), dataset.notes) == (len(endings), ())


def test_classes_and_images_come_in_the_order_of_torchvisions_image_folder(tmp_path, pictures, save_picture):
    for number, name in enumerate(("10/B", "10/a", "2", "2/b", "2/b/c")):
        save_picture(tmp_path / "test" / name / f"{number}.png", pictures(1, seed=number)[0])

    dataset = load_dataset("pets", "test", root=tmp_path)

    assert dataset.classes == ("10", "2")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(dataset.images, torch.cat([pictures(1, seed=number) for number in range(5)]))


def test_image_files_that_are_not_read_are_named_and_counted(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1)[0])
    save_picture(tmp_path / "test" / "stray.png", pictures(1)[0])
    (tmp_path / "test" / "cat" / "2.tif").write_bytes(b"II*\0")

    (note,) = load_dataset("pets", "test", root=tmp_path).notes

    assert note.startswith("2 image files of ")
    assert note.endswith("were not read: stray.png, cat/2.tif")


def test_links_that_lead_back_up_end(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1)[0])
    (tmp_path / "test" / "cat" / "again").symlink_to(tmp_path / "test")

    assert len(load_dataset("pets", "test", root=tmp_path)) == 1


@pytest.mark.parametrize("folder", ["val", "validation", "valid"])
def test_a_folder_of_validation_is_what_is_held_out(tmp_path, pictures, save_picture, folder):
    images = pictures(3)
    for number, place in enumerate(("train/cat", "train/dog", f"{folder}/dog")):
        save_picture(tmp_path / place / "1.png", images[number])

    fit, validation = (load_dataset("pets", split, root=tmp_path) for split in ("fit", "validation"))

    assert (len(fit), fit.split) == (2, "fit")
    assert torch.equal(validation.images, images[2:])
    assert (validation.labels.tolist(), validation.split) == ([1], "validation")
    with pytest.raises(ValueError, match="got images by class of the split train and validation"):
        load_dataset("pets", "test", root=tmp_path)


def test_two_folders_of_validation_are_refused(tmp_path, pictures, save_picture):
    for folder in ("train", "val", "validation"):
        save_picture(tmp_path / folder / "cat" / "1.png", pictures(1)[0])

    with pytest.raises(ValueError, match="needs one folder for validation, got val and validation"):
        load_dataset("pets", "validation", root=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path, pictures, save_picture):
    save_picture(tmp_path / "test" / "cat" / "1.png", pictures(1)[0])
    os.mkfifo(tmp_path / "test" / "cat" / "2.png")

    assert len(load_dataset("pets", "test", root=tmp_path)) == 1
