"""The command as torchrun starts it: two processes of one machine, by gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastdef.checkpoint import load
from fastdef.data import write_idx

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastdef"]
SMALL = ["--architecture", "wrn-10-1", "--batch-size", "8", "--device", "cpu", "--lr", "0.001"]

pytestmark = pytest.mark.slow


def started(*arguments):
    command, pipe = [*LAUNCHER, *map(str, arguments)], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)


def told(process):
    """Status, what was printed, and the lines that begin as the command's do when it ends early."""
    out, error = process.communicate(timeout=600)
    return process.returncode, out, [line for line in error.splitlines() if line.startswith("fastdef: ")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images = torch.randint(0, 256, (80, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_idx(root, "train", images, torch.arange(80) % 10)
    write_idx(root, "test", images[:20], torch.arange(20) % 10)
    return ["--data", "fashion-mnist", "--root", str(root)]


def test_both_stages_of_afa_are_trained_and_told_once(data, tmp_path):
    command = ["train", "afa", *data, *SMALL, "--branches", "2", "--epochs", "1", "--fusing-epochs", "1"]

    status, out, ends = told(started(*command, "--out", tmp_path / "afa"))

    assert (status, ends) == (0, [])
    assert out.splitlines()[0].startswith(f"wrote {tmp_path / 'afa' / 'model.safetensors'}: ")
    assert len(out.splitlines()) == 1
    assert len((tmp_path / "afa" / "log.jsonl").read_text().splitlines()) == 1
    assert load(tmp_path / "afa" / "model.safetensors").training["config"]["method"]["name"] == "afa stage II"


def test_a_killed_process_ends_the_run_with_one_line_and_it_is_resumed_where_it_was(run, data, tmp_path):
    command = ["train", "smoothing", *data, *SMALL, "--epochs", "20"]
    log = tmp_path / "killed" / "log.jsonl"

    process = started(*command, "--out", tmp_path / "killed")
    while not (log.is_file() and log.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    (_, *others) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(others[-1]), signal.SIGKILL)
    status, _, ends = told(process)

    assert status == 1
    assert len(ends) == 1
    assert "lost one of its processes" in ends[0]
    assert log.read_text().count("\n") < 20

    assert run(*command, "--out", tmp_path / "killed", "--resume")[0] == 0  # by one process alone
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    resumed, whole = (
        json.loads((tmp_path / n / "log.jsonl").read_text().splitlines()[-1]) for n in ("killed", "whole")
    )
    assert resumed["epoch"] == 20
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-4)


def test_a_refusal_is_one_line(data, tmp_path):
    command = ["train", "smoothing", *data, *SMALL, "--epochs", "1", "--out", tmp_path]
    (tmp_path / "state.safetensors").touch()

    assert told(started(*command))[::2] == (
        1,
        [f"fastdef: {tmp_path} holds a run already; resume it, or give another folder"],
    )


EVALUATE = ["--batch-size", "8", "--steps", "2", "--undefended", "--device", "cpu"]


def test_an_evaluation_is_that_of_one_process(run, model_file, data, tmp_path):
    command = ["evaluate", model_file, *data, *EVALUATE]
    run(*command, "--json", tmp_path / "one.json")

    status, out, ends = told(started(*command, "--json", tmp_path / "two.json"))

    one, two = (json.loads((tmp_path / name).read_text())["rows"] for name in ("one.json", "two.json"))
    assert (status, ends) == (0, [])
    assert out.count("fashion-mnist test") == 1
    assert {name: row["correct"] for name, row in one.items()} == {name: row["correct"] for name, row in two.items()}


def test_a_command_that_several_processes_cannot_share_is_refused(model_file, tmp_path):
    status, _, ends = told(started("export", model_file, "--out", tmp_path / "out"))

    (line,) = ends
    assert status == 1
    assert (
        line
        == "fastdef: export needs one process, got 2: only train, evaluate, evaluate-adaptive, evaluate-afa share work"
    )
    assert not (tmp_path / "out").exists()


def test_what_one_process_alone_is_refused_ends_all_with_its_line(model_file, data, tmp_path):
    missing = tmp_path / "no" / "out.json"  # which the first alone would write

    status, _, ends = told(started("evaluate", model_file, *data, *EVALUATE, "--json", missing))

    assert status == 1
    assert len(ends) == 1
    assert "cannot write" in ends[0]
