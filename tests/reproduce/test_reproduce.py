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
from reproduce import afa, both, generators, smoothing, static

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
        for module in (smoothing, afa, both)
        for name, plan in module.PRESETS.items()
    }

    for stages in plans.values():
        names = [stage.name for stage in stages]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("module", [smoothing, afa, both])
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


@pytest.fixture(scope="module")
def in_one(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("both")
    return out, reproduce(root, out, "both", "--budget", "screen")


@pytest.mark.slow
def test_both_in_one_model_are_attacked_beside_each_alone(in_one):
    out, ended = in_one

    assert ended.returncode == 0, ended.stderr
    assert (out / "table.md").read_text().count("| not there |") == 6


@pytest.mark.slow
def test_stage_two_is_trained_in_every_way_and_measured(in_one, root, tmp_path):
    stage1 = in_one[0] / "afa" / "stage1" / "model.safetensors"
    command = [sys.executable, "-m", "reproduce.generators", str(stage1), "--data", "fashion-mnist"]
    command += ["--root", str(root), "--out", str(tmp_path), "--epochs", "1", "--train-limit", "100", "--limit", "4"]

    ended = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, cwd=REPOSITORY)

    assert ended.returncode == 0, ended.stderr
    variants = json.loads((tmp_path / "generators.json").read_text())["variants"]
    assert set(variants) == set(generators.VARIANTS)
    for one in variants.values():
        assert one["attack_on_w0"]["correct"] <= one["accuracy"]["8"]["correct"]
        assert 0 <= one["auc"] <= 1
