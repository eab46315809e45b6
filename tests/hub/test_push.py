"""To the hub and back, by huggingface-hub's own client, against a stand-in of the hub's HTTP API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdef import load
from fastdef.assets import ASSETS
from tests.hub import hub_server

ROOT = Path(__file__).parents[2]
MODEL = ASSETS / "smoothing.safetensors"
PUSH = "import fastdef.hub, sys; print(fastdef.hub.push_to_hub(sys.argv[1], 'user/model', license='mit'))"
LOAD = "import fastdef, sys; print(fastdef.load(sys.argv[1]).classes)"


@pytest.fixture
def hub():
    address, repositories, asked, stop = hub_server.start()
    yield address, repositories, asked
    stop()


@pytest.fixture
def run(hub, tmp_path):
    """Runs a program, or a command, for which the stand-in is the hub."""

    def run(*arguments, token="right"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    return run


def test_a_model_goes_to_the_hub_with_its_card_and_comes_back(hub, run):
    _, repositories, _ = hub

    pushed = run("-c", PUSH, MODEL)
    loaded = run("-c", LOAD, "hf://user/model")

    assert pushed.returncode == 0, pushed.stderr
    assert "user/model/commit/" in pushed.stdout
    assert repositories["user/model"]["model.safetensors"] == MODEL.read_bytes()
    assert b"license: mit" in repositories["user/model"]["README.md"]
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == str(load(MODEL).classes)


def test_commands_take_a_model_of_the_hub(hub, run, tmp_path):
    _, repositories, asked = hub
    repositories["user/model"] = {"other.safetensors": MODEL.read_bytes()}

    ended = run("-m", "fastdef", "info", "hf://user/model@v1/other.safetensors", "--json", "info.json")

    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "info.json").read_text())["architecture"] == "wrn-10-2"
    assert "GET /user/model/resolve/v1/other.safetensors" in asked


@pytest.mark.parametrize(
    ("command", "token", "reason"),
    [
        (("info", "hf://user/missing"), "right", "cannot download hf:/user/missing: "),
        (("info", "hf://user"), "right", "a model of the hub needs a name such as hf://user/model, "),
        (("card", MODEL, "--push", "user/model"), "wrong", "cannot push to user/model: "),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(run, command, token, reason):
    ended = run("-m", "fastdef", *command, token=token)

    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"fastdef: {reason}")
    assert "Traceback" not in ended.stderr
