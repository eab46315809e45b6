"""A disk that is full or a folder that is read-only: one line, status 2, the last good files as they were; then on."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.failures.disks import BALLAST, DISKS, MOUNTED
from tests.failures.training import assert_same, states

SOME = 20_000  # bytes: more than a log, less than a model


@pytest.fixture(
    params=[pytest.param(kind, marks=pytest.mark.slow) if kind in MOUNTED else kind for kind in DISKS],
    ids=lambda kind: kind.__name__,
)
def disk(request, tmp_path):
    disk = request.param(tmp_path / "disk")
    yield disk
    disk.close()


def content(folder):
    """Files of a folder by their names in it."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != BALLAST}


def assert_one_line(ended):
    """A refusal comes after whatever the work has told, and is all there is of it."""
    lines = ended.told.splitlines()
    assert ended.status == 2, ended.told
    assert [line for line in lines if line.startswith("fastdef: ")] == lines[-1:]
    assert "Traceback" not in ended.told


@pytest.mark.parametrize("room", [SOME, 500_000], ids=["model", "state"])
def test_training_keeps_its_last_epoch_and_goes_on(disk, trained, room):
    command, whole, ended = trained["smoothing"]
    command, folder = [*command, disk.folder / "run"], disk.folder / "run"
    before_third = 1 + 2 * (ended.steps - 1) // 3  # one makes the folder, and each epoch takes as many
    assert disk.run(command, folder, at=before_third).killed
    before = content(folder)
    assert states(folder)["state.safetensors"].epochs == 2

    disk.shut(room)
    ended = disk.run([*command, "--resume"], folder)

    assert_one_line(ended)
    kept = ["state.safetensors", *([] if room > SOME else ["model.safetensors"])]
    assert {name: content(folder)[name] for name in kept} == {name: before[name] for name in kept}
    disk.open()
    assert disk.run([*command, "--resume"], folder).status == 0
    assert_same(folder, whole)


def test_a_first_run_leaves_nothing_that_looks_like_one(disk, trained):
    command, _, _ = trained["smoothing"]
    folder = disk.folder / "run"

    disk.shut(SOME)
    ended = disk.run([*command, folder], folder)

    assert_one_line(ended)
    assert not list(disk.folder.rglob("*.safetensors"))


def test_an_export_is_whole_or_not_there(disk, models):
    folder = disk.folder / "out"
    command = ["export", models["plain"], "--no-check", "--out", folder]

    disk.shut(SOME)
    ended = disk.run(command, folder)

    assert_one_line(ended)
    assert content(disk.folder) == {}
    disk.open()
    assert disk.run(command, folder).status == 0
    assert content(folder).keys() == {"classifier.onnx", "model.json"}


def test_an_adaptive_evaluation_keeps_its_units_and_goes_on(disk, models, data):
    folder = disk.folder / "report"
    command = ["evaluate-adaptive", models["plain"], "--rows", "0", "--limit", 2, *data, "--report", folder]
    assert disk.run(command, folder, at=24).killed
    before = {name: value for name, value in content(folder).items() if not name.split("/")[-1].startswith(".")}
    assert len(before) > 2

    disk.shut(0)
    ended = disk.run([*command, "--resume"], folder)

    assert_one_line(ended)
    assert before.items() <= content(folder).items()
    disk.open()
    assert disk.run([*command, "--resume"], folder).status in (0, 1)
    assert before.items() <= content(folder).items()
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "MODEL", "DATA", "--steps", 1, "--limit", 2, "--no-compile"],
        ["evaluate-adaptive", "MODEL", "DATA", "--rows", "0", "--limit", 1],
        ["evaluate-afa", "MODEL", "DATA", "--steps", 1, "--limit", 2, "--eps", "0,8"],
        pytest.param(["bench", "solvers", "--model", "MODEL", "DATA", "--limit", 2], marks=pytest.mark.slow),
    ],
    ids=lambda command: "-".join(str(word) for word in command[:2]),
)
def test_figures_are_written_whole_or_the_old_ones_stay(disk, models, data, command):
    file = disk.folder / "figures.json"
    file.write_text("old")
    filled = {"MODEL": [models["defended"]], "DATA": data}
    command = [word for part in command for word in filled.get(part, [part])]

    disk.shut(0)
    ended = disk.run([*command, "--json", file], disk.folder)

    assert_one_line(ended)
    assert content(disk.folder) == {"figures.json": b"old"}


def test_standard_output_that_takes_nothing_is_one_line(models):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "fastdef", "--version"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)

    assert ended.returncode == 2
    assert ended.stderr == "fastdef: the system: No space left on device\n"
