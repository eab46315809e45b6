import sys

import pytest
import torch

from fastdef.checkpoint import save
from fastdef.cli import main
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture

CLASSES = tuple(f"class {number}" for number in range(10))


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; gives its status, and what it wrote to the two streams."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastdef", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def refuse(run):
    """Runs a command that is to be refused; gives the one line that says why."""

    def refuse(*arguments):
        status, _, error = run(*arguments)
        line = error.splitlines()[-1]
        assert status == 2
        assert line.startswith("fastdef: ")
        assert "Traceback" not in error
        return line

    return refuse


def _small():
    torch.manual_seed(0)
    return build(parse_architecture("wrn-10-1", num_classes=10, in_channels=1)).eval()


@pytest.fixture(scope="session")
def bare_file(tmp_path_factory):
    """The same without a defense."""
    path = tmp_path_factory.mktemp("bare") / "model.safetensors"
    model = _small()
    save(path, model, architecture=architecture_of(model), classes=CLASSES)
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A small model for 28 x 28 gray images, with an Active Defense of few steps."""
    model = _small()
    defense = ActiveDefense(model, beta=3.0, max_steps=4, compile=False)
    defense.calibrate(torch.rand(8, 1, 28, 28))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    training = {"shape": [1, 28, 28]}
    described = architecture_of(model)
    save(path, model, architecture=described, classes=CLASSES, defense=defense.config(), training=training)
    return path
