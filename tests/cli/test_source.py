import pytest
import torch

from fastdef.checkpoint import load, save
from tests.checkpoint import networks

SOURCE = "tests.checkpoint.networks:wrapped"
IMAGES = ["--data", "fashion-mnist", "--root", "fastdef/assets"]
COMMANDS = {
    "evaluate": ["evaluate", "MODEL", *IMAGES, "--limit", 4, "--steps", 1],
    "adaptive": ["evaluate-adaptive", "MODEL", *IMAGES, "--limit", 4],
    "evaluate-afa": ["evaluate-afa", "MODEL", *IMAGES, "--limit", 4],
    "calibrate": ["calibrate", "MODEL", *IMAGES, "--split", "test", "--beta", "2"],
    "export": ["export", "MODEL", "--out", "OUT", "--size", 28],
    "defend": ["defend", "MODEL", "image.png", "--size", 28],
    "serve": ["serve", "MODEL", "--size", 28],
}


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save(path, networks.wrapped(), source=SOURCE, classes=[str(number) for number in range(10)])
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_loads_a_model_asks_for_the_code_that_builds_it(refuse, path, name):
    command = [{"MODEL": path, "OUT": path.parent / "out"}.get(word, word) for word in COMMANDS[name]]

    assert f"--source {SOURCE}" in refuse(*command)
    assert "no function 'absent'" in refuse(*command, "--source", "tests.checkpoint.networks:absent")


def test_a_named_source_is_built_and_what_is_written_keeps_it(run, path):
    command = ["calibrate", path, *IMAGES, "--split", "test", "--source", SOURCE]

    status, told, _ = run(*command)

    assert (status, told[:5]) == (0, "wrote")
    assert load(path, source=SOURCE).defense["kind"] == "active"
