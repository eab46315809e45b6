import json

import pytest
import torch

from fastdef.data import write_idx


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_idx(root, "test", images, torch.arange(20) % 10)
    return ["--data", "fashion-mnist", "--root", str(root)]


def test_the_table_has_counts_and_intervals_and_the_file_too(run, model_file, data, tmp_path):
    arguments = ["--limit", "12", "--steps", "2", "--no-compile", "--json", tmp_path / "out.json"]

    status, out, _ = run("evaluate", model_file, *data, *arguments)

    found = json.loads((tmp_path / "out.json").read_text())
    assert status == 0
    assert "/12" in out
    assert "interval" in out
    assert list(found["rows"]) == ["clean", "attacked", "clean, defended", "attacked, defended"]
    assert found["rows"]["attacked, defended"]["count"] == 12
    assert found["rows"]["attacked, defended"]["steps_max"] <= 4


def test_the_defense_can_be_left_out(run, model_file, data, tmp_path):
    run("evaluate", model_file, *data, "--limit", "4", "--steps", "1", "--undefended", "--json", tmp_path / "out.json")

    assert list(json.loads((tmp_path / "out.json").read_text())["rows"]) == ["clean", "attacked"]


def test_refusals_are_one_line(refuse, model_file, data, tmp_path):
    assert "a loss among" in refuse("evaluate", model_file, *data, "--loss", "hinge")
    assert "eps > 0" in refuse("evaluate", model_file, *data, "--eps", "-1")
    assert "a split among" in refuse("evaluate", model_file, *data, "--split", "dev")
    missing = tmp_path / "no" / "such" / "out.json"
    assert "out.json" in refuse(
        "evaluate", model_file, *data, "--limit", "2", "--steps", "1", "--undefended", "--json", missing
    )
