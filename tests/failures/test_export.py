"""An export that is killed: what has its name is whole, what is not complete is not opened, and run again it is."""

import hashlib
import json

import pytest

from fastdef.export.manifest import verified
from fastdef.export.target import exported_target
from tests.failures.processes import moments, run


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """Exports a model in full: gives the command without its folder, the folder, and how it ended."""
    base = tmp_path_factory.mktemp("whole")

    def export(name):
        command = ["export", models[name], "--no-check", "--out"]
        ended = run([*command, base / name], base / name)
        assert ended.status == 0, ended.told
        return command, base / name, ended

    return export


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def killed(exported, folder, **when):
    """Whether it was killed before its end; if so, everything that has its name is as in a whole export."""
    command, whole, _ = exported
    ended = run([*command, folder], folder, **when)
    if not ended.killed:
        assert ended.status == 0, ended.told
        return False
    left = {name: content for name, content in files(folder).items() if not name.startswith(".fastdef-")}
    assert left.items() <= files(whole).items()
    if "model.json" in left:
        assert left.keys() == files(whole).keys()
    else:
        with pytest.raises(ValueError, match=r"there is no .*model\.json"):
            exported_target(folder)
    return True


def killed_again_and_again(exported, folder, count, *, seed):
    """Each begins over what the one before it left; the last is let to its end."""
    command, whole, ended = exported
    kills = 0
    for after in moments(count, ended, seed=seed):
        kills += killed(exported, folder, after=after)
        if kills == count:
            break
        (folder / "model.json").unlink(missing_ok=True)  # what came to its end is begun anew
    assert kills == count, "the others came after the end"

    ended = run([*command, folder], folder)

    assert ended.status == 0, ended.told
    assert files(folder) == files(whole)


def test_killed_at_a_few_moments_it_ends_with_the_same_bytes(exported, tmp_path):
    killed_again_and_again(exported("plain"), tmp_path / "out", 2, seed=1)


@pytest.mark.slow
def test_killed_before_every_step_on_the_disk_what_is_there_is_whole(exported, tmp_path):
    plain = exported("plain")
    for step in range(plain[2].steps):
        assert killed(plain, tmp_path / "out", at=step)
        (tmp_path / "out" / "model.json").unlink(missing_ok=True)


@pytest.mark.slow
def test_killed_over_an_older_export_only_what_is_of_one_making_is_opened(exported, tmp_path):
    plain = exported("plain")
    new = files(plain[1])
    old = {"classifier.onnx": b"old"}
    named = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in old.items()}
    old["model.json"] = json.dumps({"files": named}).encode()
    for step in range(plain[2].steps):
        folder = tmp_path / str(step)
        folder.mkdir()
        for name, content in old.items():
            (folder / name).write_bytes(content)

        assert run([*plain[0], folder], folder, at=step).killed

        left = {name: content for name, content in files(folder).items() if not name.startswith(".fastdef-")}
        if left in (old, new):
            verified(folder / "classifier.onnx")
        else:
            with pytest.raises(ValueError, match="its sha256 is another"):
                verified(folder / "classifier.onnx")


@pytest.mark.slow
def test_a_defended_model_s_killed_at_random_moments_ends_with_the_same_bytes(exported, tmp_path):
    killed_again_and_again(exported("defended"), tmp_path / "out", 20, seed=2)
