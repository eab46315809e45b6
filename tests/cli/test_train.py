import json

import pytest
import torch

import fastdef.cli
from fastdef.checkpoint import load
from fastdef.cli._training import channel_statistics
from fastdef.data import Dataset, write_idx

SMALL = ["--architecture", "wrn-10-1", "--epochs", "1", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 28, 28), generator=generator).to(torch.uint8)
    write_idx(root, "train", images, torch.arange(60) % 10)
    write_idx(root, "test", images, torch.arange(60) % 10)
    return ["--data", "fashion-mnist", "--root", str(root)]


def test_the_version_is_told(run):
    assert run("--version") == (0, f"{fastdef.__version__}\n", "")


def test_training_writes_a_calibrated_model_and_says_so(run, data, tmp_path):
    status, out, error = run(
        "train", "smoothing", *data, *SMALL, "--out", tmp_path / "run", "--ema", "0.9", "--json", tmp_path / "json"
    )

    figures = json.loads((tmp_path / "json").read_text())
    checkpoint = load(tmp_path / "run" / "model.safetensors")
    assert status == 0
    assert out.startswith(f"wrote {tmp_path / 'run' / 'model.safetensors'}: ")
    assert "epoch 1" in error
    assert f"accuracy {figures['accuracy']:.4g}" in out
    assert checkpoint.classes[0] == "T-shirt"
    assert checkpoint.defense["kind"] == "active"
    assert checkpoint.architecture["mean"] == [pytest.approx(0.5, abs=0.02)]
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text())["epoch"] == 1


def test_normalized_features_are_trained_defended_and_calibrated(run, data, tmp_path):
    model = tmp_path / "model.safetensors"
    status, _, _ = run("train", "smoothing", *data, *SMALL, "--features", "normalized", "--out", tmp_path)

    assert status == 0
    assert load(model).defense["layer"] == "block1.normalized"
    assert load(model).defense["beta"] == 1.5
    assert load(model).training["config"]["method"]["delta"] == 0.4
    assert run("calibrate", model, *data, "--ratio", 0.99, "--beta", 1, "--max-steps", 3, "--device", "cpu")[0] == 0
    options = ["--limit", 8, "--steps", 1, "--no-compile", "--device", "cpu", "--json", tmp_path / "found.json"]
    assert run("evaluate", model, *data, *options)[0] == 0
    assert "attacked, defended" in json.loads((tmp_path / "found.json").read_text())["rows"]


def test_a_run_needs_resume_to_go_on_and_resume_needs_the_same_settings(run, refuse, data, tmp_path):
    command = ["train", "smoothing", *data, *SMALL, "--no-normalize", "--no-augment", "--out", tmp_path / "run"]
    assert run(*command, "--limit", 40)[0] == 0

    assert "holds a run already" in refuse(*command, "--limit", 40)
    assert "data.images was 36, got 45" in refuse(*command, "--limit", 50, "--resume")
    assert "defense.sigma was 0.075, got 0.2" in refuse(*command, "--limit", 40, "--sigma", 0.2, "--resume")
    assert run(*command, "--limit", 40, "--resume")[0] == 0
    assert load(tmp_path / "run" / "model.safetensors").architecture["mean"] is None


def test_a_finished_run_is_told_to_be_done_unless_its_model_file_was_to_be_written_again(run, data, tmp_path):
    model = tmp_path / "model.safetensors"
    command = ["train", "smoothing", *data, *SMALL, "--out", tmp_path]
    _, told, _ = run(*command)
    before = model.read_bytes()

    assert run(*command, "--resume")[:2] == (0, f"{model} is done: nothing left to train\n")
    model.unlink()
    assert run(*command, "--resume")[:2] == (0, told)
    assert model.read_bytes() == before


def test_a_run_goes_on_with_the_same_images_alone(run, refuse, data, tmp_path):
    write_idx(tmp_path, "train", torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 10)
    command = ["train", "smoothing", *data, *SMALL, "--no-normalize", "--out", tmp_path / "run"]
    run(*command)

    assert "data.sha256 was" in refuse(*command, "--root", tmp_path, "--resume")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--architecture", "vgg-16"], "got 'vgg-16'"),
        (["--device", "tpu9"], "--device needs"),
        (["--layer", "block9"], "block9"),
        (["--layer", "block9", "--features", "normalized"], "block9"),
        (["--features", "smooth"], "--features needs one of raw, normalized, got 'smooth'"),
        (["--milestones", "75;90"], "--milestones needs"),
        (["--schedule", "cosine"], "got 'cosine'"),
        (["--lr", "nan"], "lr > 0"),
        (["--limit", "9"], "ten images"),
        (["--root", "/nowhere"], "/nowhere"),
        (["--data", "imagenet"], "'imagenet'"),
        (["--resume"], "there is no"),
        (["--out", "/dev/null/run"], "/dev/null/run"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(refuse, data, tmp_path, wrong, told):
    command = ["train", "smoothing", *data, *SMALL, "--out", tmp_path / "run", *wrong]

    assert told in refuse(*command)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(run, data, tmp_path, monkeypatch):
    calls = []

    def interrupt(self, model, dataset):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"accuracy": 0.5}

    monkeypatch.setattr("fastdef.training.smoothing.Smoothing.validate", interrupt)
    command = ["train", "smoothing", *data, *SMALL, "--epochs", "2", "--out", tmp_path / "run"]

    status, _, error = run(*command)
    assert status == 130
    assert error.splitlines()[-1] == "fastdef: interrupted; add --resume to the same command to go on"

    assert run(*command, "--resume")[0] == 0
    assert load(tmp_path / "run" / "model.safetensors").training["epochs"] == 2


def test_calibrating_rewrites_the_defense_of_a_model_file(run, data, tmp_path):
    run("train", "smoothing", *data, *SMALL, "--out", tmp_path)
    model = tmp_path / "model.safetensors"
    before = load(model).defense

    status, out, _ = run("calibrate", model, *data, "--ratio", 0.46, "--beta", 40, "--device", "cpu")

    after = load(model).defense
    assert status == 0
    assert "beta 40" in out
    assert after["beta"] == 40.0
    assert after["delta"] == pytest.approx(before["delta"] / 2, rel=1e-3)
    assert after["sigma"] == before["sigma"]


def test_channel_statistics_are_of_every_image():
    images = torch.zeros(5000, 2, 2, 2, dtype=torch.uint8)
    images[-1000:, 1] = 255
    dataset = Dataset(images, torch.zeros(5000, dtype=torch.int64), ("a",), "made", "fit")

    assert channel_statistics(dataset) == ([0.0, 0.2], [0.001, 0.4])
