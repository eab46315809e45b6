import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def suite(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def test_without_a_gpu_it_says_what_it_needs(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")

    ended = suite(tmp_path)

    assert ended.returncode == 1
    assert "needs a CUDA device" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_refused(tmp_path):
    ended = suite(tmp_path, "--small", "--only", "nonsense")

    assert ended.returncode == 1
    assert "got nonsense" in ended.stderr


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_time_can_run_out(tmp_path):
    first = suite(tmp_path, "--small", "--only", "ceilings")
    written = (tmp_path / "ceilings.json").stat().st_mtime_ns
    again = suite(tmp_path, "--small", "--minutes", "0")

    assert first.returncode == 0
    assert (tmp_path / "ceilings.json").stat().st_mtime_ns == written
    assert "out of time; the same call goes on here" in again.stdout
    rows = json.loads((tmp_path / "ceilings.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {
        *("copy", "matmul", "convolution", "input gradient", "input gradient as a convolution"),
    }
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.slow
def test_every_part_runs_to_its_end_in_its_small_form(tmp_path):
    ended = suite(tmp_path, "--small")

    told = json.loads((tmp_path / "suite.json").read_text())
    assert ended.returncode == 0
    assert {name: part["status"] for name, part in told["parts"].items()} == {
        "ceilings": 0,
        "smoothing": 0,
        "afa_fuse": 0,
        "tuning": 0,
        "defense_shipped": 0,
        "training": 0,
    }
