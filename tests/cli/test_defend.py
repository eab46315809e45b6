import json

import numpy as np
import pytest
from PIL import Image


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


def test_a_seed_repeats_the_answer_and_none_draws_another(run, model_file, pictures):
    first, again, other = (
        run("defend", model_file, pictures / "0.png", *seed)[1] for seed in (["--seed", "1"], ["--seed", "1"], [])
    )

    assert first == again
    assert first != other


def test_refusals_are_one_line(refuse, model_file, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / "0.png").read_bytes()[:100])
    pickle = tmp_path / "model.pt"
    pickle.write_bytes(b"\x80\x02}q\x00.")

    assert "broken.png is not a whole PNG, JPEG" in refuse("defend", model_file, broken)
    assert "there is none" in refuse("defend", model_file, tmp_path / "missing.png")
    assert "needs to be 30 x 30 pixels, got 28 x 28" in refuse("defend", model_file, pictures, "--size", "30")
    assert "there is no such file" in refuse("defend", tmp_path / "missing.safetensors", pictures)
    assert "pickles" in refuse("defend", pickle, pictures) or "pickle" in refuse("defend", pickle, pictures)


@pytest.mark.parametrize("size", [0, 8193, 10**30])
def test_a_size_of_no_image_is_refused(run, model_file, pictures, size):
    status, _, error = run("defend", model_file, pictures, "--size", size, "--resize")

    assert status == 2
    assert "Invalid value for '--size'" in error
