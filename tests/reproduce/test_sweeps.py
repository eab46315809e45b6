import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdef.data import write_idx
from fastdef.nn import build, parse_architecture
from reproduce.sweeps.defenses import Blur, Setting, blur_as_far, calibrated, noise_alone, rms
from reproduce.sweeps.plan import PRESETS, shipped

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 160), ("test", 20)):
        images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator).to(torch.uint8)
        write_idx(root, split, images, torch.arange(count) % 10)
    return root


def sweep(root, out, *arguments):
    command = [sys.executable, "-m", "reproduce.sweeps", "smoothing", "--data", "fashion-mnist", "--root", str(root)]
    command += [
        "--only",
        "delta 0.08;standard",
        "--epochs",
        "1",
        "--train-limit",
        "64",
        "--limit",
        "4",
        "--out",
        str(out),
    ]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_twin_is_the_same_training_without_the_smoothing_loss(preset):
    trainings = {training.slug: training for training in (*PRESETS[preset].trainings, *shipped())}
    named = {training.name: training for training in trainings.values()}

    assert len(trainings) == len(PRESETS[preset].trainings) + len(shipped())
    for training in named.values():
        if training.twin is not None:
            changed = {"name": training.twin, "delta": 0, "features": "raw", "twin": None, "file": None}
            twin = named[training.twin]
            assert replace(training, **changed, variants=twin.variants) == twin
        else:
            assert training.delta == 0


def test_the_blur_moves_images_as_far_as_it_is_asked_to_and_a_plain_one_not_at_all():
    images = torch.rand(8, 3, 20, 20)

    assert rms(blur_as_far(images, 0.1)(images) - images) == pytest.approx(0.1, rel=1e-3)
    torch.testing.assert_close(Blur(1.5)(torch.full((1, 3, 9, 9), 0.3)), torch.full((1, 3, 9, 9), 0.3))


def test_a_step_is_as_long_as_the_setting_says_and_noise_alone_takes_none():
    torch.manual_seed(0)
    model, images = build(parse_architecture("wrn-10-1", in_channels=1)).eval(), torch.rand(16, 1, 12, 12)
    defense = calibrated(model, "block1", images, Setting(step=0.01, ratio=0.1), compile=False)
    ids = torch.arange(16)

    noised = defense.noised(images, ids=ids)
    moved = defense.smooth(images, ids=ids, budgets=torch.ones(16, dtype=torch.int64)).images

    assert rms(moved - noised) == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(noise_alone(defense).purify(images, ids, None), noised)


def test_a_point_that_is_not_planned_is_refused(root, tmp_path):
    ended = sweep(root, tmp_path, "--only", "middle")

    assert ended.returncode == 1
    assert "got 'middle'" in ended.stderr


@pytest.mark.slow
def test_a_sweep_stops_goes_on_and_ends_with_table_figure_and_points(root, tmp_path):
    stopped = sweep(root, tmp_path, "--minutes", "0")
    ended = sweep(root, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "points").iterdir()}
    again = sweep(root, tmp_path)

    assert "out of time" in stopped.stdout
    assert "; the same command goes on" in stopped.stdout
    assert ended.returncode == again.returncode == 0, ended.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "points").iterdir()} == before
    points = json.loads((tmp_path / "points.json").read_text())
    assert set(points) == {"delta 0.08", "standard"}
    assert set(points["standard"]["rows"]) == {"undefended", "noise", "blur", "defended"}
    assert "| delta 0.08 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "sweep.png").stat().st_size > 5000
