import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer

from fastdef.cli import app
from fastdef.data import write_idx
from reproduce import afa, smoothing, static

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 160), ("test", 20)):
        images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator).to(torch.uint8)
        write_idx(root, split, images, torch.arange(count) % 10)
    return root


def reproduce(root, out, *arguments):
    command = [sys.executable, "-m", "reproduce", *arguments, "--data", "fashion-mnist", "--root", str(root)]
    command += ["--architecture", "wrn-10-1", "--epochs", "1", "--train-limit", "160", "--limit", "2"]
    return subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, cwd=REPOSITORY)


def test_no_two_stages_share_a_name():
    plans = {
        f"{module.TITLE}, {name}": module.stages(plan, Path("o"))
        for module in (smoothing, afa)
        for name, plan in module.PRESETS.items()
    }

    for stages in plans.values():
        names = [stage.name for stage in stages]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("module", [smoothing, afa])
def test_every_stage_is_a_command_with_options_that_it_has(module):
    """Parsed, and not run."""
    for preset in module.PRESETS.values():
        plan = replace(preset, data=("--data", "cifar10", "--root", "data"))
        for stage in module.stages(plan, Path("o")):
            name, arguments = stage.module, [str(argument) for argument in stage.command]
            command = typer.main.get_command(app if name == "fastdef" else _single(static.main))
            while hasattr(command, "commands"):
                command = command.commands[arguments.pop(0)]
            command.make_context(name, arguments)


def _single(function):
    """A program of one command, as ``typer.run`` makes it."""
    program = typer.Typer()
    program.command()(function)
    return program


@pytest.mark.slow
def test_the_smoothing_paper_is_gone_through_to_its_table(root, tmp_path):
    ended = reproduce(root, tmp_path, "smoothing", "--budget", "smoke")

    assert ended.returncode == 0, ended.stderr
    table = (tmp_path / "table.md").read_text()
    assert table.count("| Tables 1, 2 |") == 30
    assert table.count("| Table 3 |") == 10
    headline = json.loads((tmp_path / "adaptive" / "report.json").read_text())["headline"]
    line = next(line for line in table.splitlines() if "eps 8, 1 outer loops: AutoAttack" in line)
    assert line.split(" | ")[-2] == f"{100 * headline:.2f}"
    assert (tmp_path / "figures-2-3.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_afa_paper_is_gone_through_to_its_table(root, tmp_path):
    ended = reproduce(root, tmp_path, "afa", "--surrogate", "resnet-50-2")

    assert ended.returncode == 0, ended.stderr
    table = (tmp_path / "table.md").read_text()
    assert table.count("| Table 1 |") == 12
    assert "images of the surrogate" in table
    assert (tmp_path / "figures-3-6.png").is_file()
