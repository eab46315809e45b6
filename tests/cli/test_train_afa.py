import json

import pytest
import torch

from fastdef.checkpoint import load
from fastdef.data import write_idx
from fastdef.nn import AFA2d

SMALL = ["--architecture", "wrn-10-1", "--epochs", "1", "--fusing-epochs", "1", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images = torch.randint(0, 256, (40, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_idx(root, "train", images, torch.arange(40) % 10)
    write_idx(root, "test", images[:16], torch.arange(16) % 10)
    return ["--data", "fashion-mnist", "--root", str(root)]


def test_both_stages_run_and_a_finished_run_is_not_trained_over(run, refuse, data, tmp_path):
    out = tmp_path / "afa"
    command = ["train", "afa", *data, *SMALL, "--branches", "2", "--out", out]

    status, told, error = run(*command, "--json", tmp_path / "json")

    assert status == 0
    assert told.startswith(f"wrote {out / 'model.safetensors'}: ")
    assert f"clean_w1 {json.loads((tmp_path / 'json').read_text())['clean_w1']:.4g}" in told
    assert error.count("epoch 1: ") == 2
    assert any(isinstance(module, AFA2d) for module in load(out / "model.safetensors").model.modules())
    assert load(out / "stage1" / "model.safetensors").training["config"]["method"]["strengths"] == [0, 8]
    assert "holds a run already" in refuse(*command)


def test_a_finished_stage_is_told_to_be_done_and_a_model_file_that_is_gone_is_written_again(run, data, tmp_path):
    command = ["train", "afa", *data, *SMALL, "--branches", "2", "--out", tmp_path]
    whole, first = tmp_path / "model.safetensors", tmp_path / "stage1" / "model.safetensors"
    _, told, told_of_first = run(*command)
    before = whole.read_bytes(), first.read_bytes()
    assert f"wrote {first}: " in told_of_first

    _, out, error = run(*command, "--resume")
    assert out == f"{whole} is done: nothing left to train\n"
    assert f"{first} is done: nothing left to train\n" in error
    whole.unlink()
    first.unlink()
    _, out, error = run(*command, "--resume")

    assert out == told
    assert f"wrote {first}: " in error
    assert "epoch 1: " not in error
    assert (whole.read_bytes(), first.read_bytes()) == before


def test_evaluate_afa_puts_models_side_by_side(run, refuse, data, tmp_path):
    for name, how in {"standard": ["--method", "standard", "--branches", "1"], "afa": ["--branches", "2"]}.items():
        run("train", "afa", *data, *SMALL, *how, "--out", tmp_path / name)
    models = [tmp_path / name / "model.safetensors" for name in ("standard", "afa")]
    options = [*data, "--steps", "1", "--eps", "0,8", "--device", "cpu"]

    files = ["--json", tmp_path / "out.json", "--figure", tmp_path / "out.png"]
    status, told, _ = run("evaluate-afa", *models, *options, *files)

    found = json.loads((tmp_path / "out.json").read_text())["models"]
    assert status == 0
    assert "standard" in told
    assert "mean W1" in told
    assert list(found) == ["standard", "afa"]
    assert len(found["afa"]["rows"]["AFA"]["by_eps"]) == 2
    assert (tmp_path / "out.png").stat().st_size > 10_000
    assert "--eps needs" in refuse("evaluate-afa", *models, *data, "--eps", "0;8")
    assert "names" in refuse("evaluate-afa", models[1], models[1], *options)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--branches", "4"], "--branches needs one of 1, 2, 3, 5, 9, got 4"),
        (["--method", "fgsm"], "--method needs one of pgd-at, trades, mart, iat, standard, got 'fgsm'"),
        (["--method", "standard"], "needs --branches 1 alone, got --branches 5"),
        (["--method", "standard", "--branches", "1", "--attack-steps", "3"], "got --branches 1 and --attack-steps 3"),
        (["--placement", "everywhere"], "placement out of shared, layerwise"),
        (["--sequential", "--compile"], "neither compiled nor smoothed"),
        (["--delta", "0.02", "--layer", "block9"], "block9"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(refuse, data, tmp_path, wrong, told):
    assert told in refuse("train", "afa", *data, *SMALL, "--out", tmp_path / "run", *wrong)
    assert not list(tmp_path.rglob("*.safetensors"))
