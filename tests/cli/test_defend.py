import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fastdef.assets import ASSETS
from fastdef.defense import ActiveDefense, precision

DATA = ("--data", "fashion-mnist", "--root", ASSETS, "--split", "test", "--class-order", "text")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


def test_each_image_gets_a_line_of_json_in_order(run, model_file, pictures):
    status, out, _ = run("defend", model_file, pictures, "--seed", "1")

    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line["file"] for line in lines] == [str(pictures / f"{number}.png") for number in range(3)]
    assert all(line["class"].startswith("class ") for line in lines)
    assert all(0.1 <= line["probability"] <= 1 and 0 <= line["steps"] <= 4 for line in lines)
    assert all(isinstance(line["converged"], bool) for line in lines)


def test_a_seed_repeats_the_answer_and_none_draws_another_each_time(run, model_file, pictures):
    # of three images: two draws of the noise of one end in the same six digits once in some hundred runs
    seeds = ["--seed", "1"], ["--seed", "1"], [], []
    first, again, one, other = (run("defend", model_file, pictures, *seed)[1] for seed in seeds)

    assert first == again
    assert len({first, one, other}) == 3


def test_the_loop_runs_in_the_precision_that_is_asked_for(run, refuse, model_file, pictures, monkeypatch):
    made = []
    begin = ActiveDefense.__init__
    monkeypatch.setattr(ActiveDefense, "__init__", lambda self, *a, **k: (made.append(k), begin(self, *a, **k))[1])

    status, _, _ = run("defend", model_file, pictures / "0.png", "--dtype", "bfloat16")

    assert (status, made[0]["dtype"]) == (0, torch.bfloat16)
    assert "one of float32, float16, bfloat16" in refuse("defend", model_file, pictures, "--dtype", "int8")


def test_refusals_are_one_line(refuse, model_file, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / "0.png").read_bytes()[:100])
    pickle = tmp_path / "model.pt"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    other_size = ("defend", model_file, pictures, "--size", "30", "--strict")

    assert "broken.png is not a whole PNG, JPEG" in refuse("defend", model_file, broken, "--strict")
    assert "there is none" in refuse("defend", model_file, tmp_path / "missing.png", "--strict")
    assert "needs to be 30 x 30 pixels, got 28 x 28" in refuse(*other_size)
    assert "there is no such file" in refuse("defend", tmp_path / "missing.safetensors", pictures)
    assert "pickles" in refuse("defend", pickle, pictures) or "pickle" in refuse("defend", pickle, pictures)
    assert "an opaque colour, such as white" in refuse("defend", model_file, pictures, "--background", "x")


@pytest.mark.parametrize("place", [0, 66, 132])
def test_one_broken_file_among_many_does_not_take_the_others_with_it(run, model_file, pictures, place):
    whole = (pictures / "0.png").read_bytes()
    for number in range(3):
        (pictures / f"{number}.png").unlink()
    for number in range(133):
        (pictures / f"{number:03}.png").write_bytes(whole[:100] if number == place else whole)

    status, out, error = run("defend", model_file, pictures, "--seed", "1")

    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [line["file"] for line in lines] == [str(pictures / f"{number:03}.png") for number in range(133)]
    assert [number for number, line in enumerate(lines) if "error" in line] == [place]
    assert sum("class" in line for line in lines) == 132
    assert set(lines[place]) == {"file", "error"}
    assert "is not a whole PNG, JPEG" in lines[place]["error"]
    assert error == "fastdef: 1 of 133 files have no answer: their lines say why\n"


def test_every_image_of_a_folder_and_of_those_in_it_has_a_line(run, model_file, pictures):
    (pictures / "deep" / "er").mkdir(parents=True)
    with Image.open(pictures / "0.png") as image:
        for name in ("4.webp", "5.bmp", "deep/6.pgm", "deep/er/7.JPG", "8.tif", "9.gif"):
            image.save(pictures / name)
    (pictures / "notes.txt").write_text("no image")

    status, out, _ = run("defend", model_file, pictures, pictures / "missing.png")

    lines = {line["file"].removeprefix(f"{pictures}/"): line for line in map(json.loads, out.splitlines())}
    refused = {name for name, line in lines.items() if "error" in line}
    assert status == 1
    assert len(lines) == 10
    assert refused == {"8.tif", "9.gif", "missing.png"}
    assert "needs to be of a kind that is read (.png, " in lines["8.tif"]["error"]


def test_where_nothing_can_be_answered_each_file_says_why(run, model_file, pictures):
    status, out, _ = run("defend", model_file, pictures, "--size", "30")

    assert status == 1
    assert ["30 x 30 pixels, got 28 x 28" in json.loads(line)["error"] for line in out.splitlines()] == [True] * 3


def test_what_is_done_when_a_strict_run_stops_is_answered(run, model_file, pictures):
    (pictures / "1.png").write_bytes(b"")

    status, out, error = run("defend", model_file, pictures, "--strict")

    assert status == 2
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(pictures / "0.png")]
    assert "1.png is not a whole PNG, JPEG" in error


def test_what_was_done_to_images_is_told_once(run, model_file, pictures):
    exif = Image.Exif()
    exif[0x112] = 6
    for number in range(2):
        with Image.open(pictures / f"{number}.png") as image:
            image.save(pictures / f"{number}.png", exif=exif)

    status, _, error = run("defend", model_file, pictures)

    assert status == 0
    assert error == "note: 2 images were turned upright, as EXIF says\n"


def test_a_transparent_image_is_answered_on_the_background_that_is_named(run, model_file, pictures):
    with Image.open(pictures / "0.png") as image:
        image.putalpha(0)
        image.save(pictures / "0.png")
    Image.new("L", (28, 28), 255).save(pictures / "1.png")

    refused = run("defend", model_file, pictures / "0.png", "--seed", "1")
    answered = run("defend", model_file, pictures / "0.png", "--seed", "1", "--background", "white")
    white = run("defend", model_file, pictures / "1.png", "--seed", "1")

    assert refused[0] == 1
    assert "needs every pixel opaque, or a background" in json.loads(refused[1])["error"]
    assert answered[0] == 0
    assert {**json.loads(answered[1]), "file": ""} == {**json.loads(white[1]), "file": ""}


@pytest.mark.parametrize("size", [0, 8193, 10**30])
def test_a_size_of_no_image_is_refused(run, model_file, pictures, size):
    status, _, error = run("defend", model_file, pictures, "--size", size, "--resize")

    assert status == 2
    assert "Invalid value for '--size'" in error


def test_a_file_whose_calibration_compared_bfloat16_may_choose_it_and_says_which_once(
    run, refuse, model_file, pictures, monkeypatch, tmp_path
):
    model = shutil.copy(model_file, tmp_path)
    monkeypatch.setitem(ActiveDefense.__init__.__kwdefaults__, "compile", False)
    monkeypatch.setattr(precision, "fast_bfloat16", lambda device: True)
    calibrated = run("calibrate", model, *DATA, "--bfloat16")
    chosen = run("defend", model, pictures, "--seed", "1", "--dtype", "auto")
    named = run("defend", model, pictures, "--seed", "1", "--dtype", "bfloat16")
    asked = run("defend", model, pictures, "--seed", "1")

    assert "bfloat16 True" in calibrated[1]
    assert chosen[2].count("note: the defense computes in bfloat16") == 1
    assert chosen[1] == named[1] != asked[1]
    assert "note" not in named[2] + asked[2]
    assert "--out needs one --dtype for all parts" in refuse(
        "defend", model, pictures, "--out", tmp_path / "out", "--dtype", "auto"
    )
