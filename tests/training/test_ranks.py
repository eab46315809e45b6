"""Training on two processes against training on one, with the same joint batches."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdef.losses import RECIPES

RANKED = Path(__file__).parent / "ranked"
CASES = [f"{name}, {how}" for name in RECIPES for how in ("one batch", "in turn")]
CASES += ["smoothed", "smoothing", "shared", "layerwise"]


@pytest.fixture(scope="module")
def found(on_ranks, tmp_path_factory):
    """What one process and what two have computed, by name."""
    files = [tmp_path_factory.mktemp("found") / f"{count}.safetensors" for count in (1, 2)]
    for count, file in enumerate(files, start=1):
        on_ranks(count, RANKED / "steps.py", file)
    return [load_file(file) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_steps_on_two_ranks_are_those_on_one(found, case):
    """Losses, clipped gradients, weights, statistics, averages, and the model to be shipped."""
    one, two = ({name: v for name, v in values.items() if name.startswith(f"{case}: ")} for values in found)

    assert one.keys() == two.keys()
    assert any(name.endswith(".grad") for name in one)
    bound = 1e-5 if case == "smoothing" else 1e-10  # its cross-entropy is in single precision
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def runs(on_ranks, tmp_path_factory):
    """Folders of a run that was whole on one rank, whole on two, and cut on two and ended on one."""
    train, folder = runpy.run_path(str(RANKED / "runs.py"))["train"], tmp_path_factory.mktemp("runs")
    train(folder / "one")
    on_ranks(2, RANKED / "runs.py", folder / "two", "whole")
    on_ranks(2, RANKED / "runs.py", folder / "moved", "cut")
    assert len((folder / "moved" / "log.jsonl").read_text().splitlines()) == 1
    train(folder / "moved", resume=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "moved"])
def test_a_run_on_two_ranks_ends_where_one_on_one_does(runs, name):
    one, other = (load_file(runs / where / "model.safetensors") for where in ("one", name))

    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "moved"])
def test_the_log_has_the_figures_of_the_joint_data(runs, name):
    one, other = ((runs / where / "log.jsonl").read_text().splitlines() for where in ("one", name))

    assert len(one) == len(other) == 2
    for line, same in zip(map(json.loads, one), map(json.loads, other), strict=True):
        del line["seconds"], same["seconds"]
        assert same == pytest.approx(line, rel=1e-4)
        assert all(map(math.isfinite, same.values()))


def test_what_is_refused_is_refused_on_every_rank_and_nothing_is_written(on_ranks, tmp_path):
    told = on_ranks(2, RANKED / "runs.py", tmp_path / "run", "refused").splitlines()

    assert told[0] == "2 processes need a batch that they can share evenly, got one of 7 images"
    assert "there is no" in told[1]
    assert re.fullmatch(r"processes of one run need the same data\.sha256, got \w{64} and \w{64}", told[2])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # minutes of C++ compiler
def test_compiled_steps_on_two_ranks_are_the_eager_ones(on_ranks):
    on_ranks(2, RANKED / "compiled.py")
