"""The adaptive evaluation by replicas of Ray: what one process says of the same images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdef.assets import ASSETS
from tests.serving.replicas import needs_ray

ROOT = Path(__file__).parents[2]
EVALUATE = [
    "evaluate-adaptive",
    str(ASSETS / "smoothing.safetensors"),
    "--data",
    "fashion-mnist",
    "--root",
    str(ASSETS),
]
EVALUATE += ["--limit", "8", "--max-steps", "10", "--no-compile", "--device", "cpu"]


def fastdef(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    command = [sys.executable, "-m", "fastdef", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.slow
@needs_ray
def test_replicas_say_what_one_process_says(tmp_path):
    alone = fastdef(*EVALUATE, "--rows", "0,2", "--report", tmp_path / "one")
    shared = fastdef(*EVALUATE, "--rows=0,2", "--report", tmp_path / "two", "--replicas", "2")

    assert (alone.returncode, alone.stderr.split()) == (shared.returncode, shared.stderr.split())
    assert shared.stdout.count("APGD-CE on the same") == 1
    one, two = (json.loads((tmp_path / name / "report.json").read_text())["lines"] for name in ("one", "two"))
    assert [line["name"] for line in one] == [line["name"] for line in two]
    assert [line["mean"] for line in one] == pytest.approx([line["mean"] for line in two], abs=0.07)


@pytest.mark.slow
@needs_ray
def test_what_the_replicas_refuse_is_one_line(tmp_path):
    ended = fastdef(*EVALUATE, "--split", "none", "--report", tmp_path, "--replicas", "2")

    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("fastdef: ")
    assert "'none'" in line


@pytest.mark.parametrize(
    ("options", "needed"),
    [((), "need a --report folder"), (("--report", "r", "--device", "cuda:1"), "cuda for a GPU each, got cuda:1")],
)
def test_replicas_need_a_folder_and_a_device_each(refuse, options, needed):
    assert needed in refuse(*EVALUATE[:-2], "--replicas", "2", *options)
