"""Training that is killed: it goes on after the last finished epoch, and ends with the same bits."""

import json
import random
import shutil

import pytest

from fastdef.checkpoint import load
from fastdef.training.state import FILE
from tests.failures.processes import moments, run
from tests.failures.training import COMMANDS, assert_same, epochs, states


def told_epochs(ended):
    """Epochs whose figures were told, which is after their state was written."""
    return sum(line.startswith("epoch ") and "seconds" in line for line in ended.told.splitlines())


def assert_every_file_is_whole(folder):
    done = {path.parent: state.epochs for path, state in ((folder / name, s) for name, s in states(folder).items())}
    for path in folder.rglob("*.safetensors"):
        if path.name == "model.safetensors":
            assert load(path).training["epochs"] - done.get(path.parent, 0) in (0, 1)
        else:
            assert path.name == FILE or (path.name.startswith(".fastdef-"))
    for path in folder.rglob("log.jsonl"):
        assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


def killed_and_resumed(trained, folder, **when):
    """Whether it was killed before its end; if so, it went on and ended as the run that nobody killed."""
    command, whole, _ = trained
    before = epochs(folder)
    killed = run([*command, folder, *(["--resume"] if before else [])], folder, **when)
    if not killed.killed:
        assert killed.status == 0, killed.told
        return False
    done = epochs(folder)
    assert done - before - told_epochs(killed) in (0, 1)  # killed between the state's name and the line that tells
    assert_every_file_is_whole(folder)

    resumed = run([*command, folder, *(["--resume"] if done else [])], folder)

    assert resumed.status == 0, resumed.told
    assert told_epochs(resumed) == epochs(whole) - done
    assert_same(folder, whole)
    return True


def killed_at_random(trained, tmp_path, count, *, seed, begin=lambda folder: None, whole=None):
    kills = 0
    for number, after in enumerate(moments(count, whole or trained[2], seed=seed)):
        folder = tmp_path / str(number)
        begin(folder)
        kills += killed_and_resumed(trained, folder, after=after)
        if kills == count:
            return
    pytest.fail(f"killed {kills} times of {count}: the others came after the end")


def stage_one(trained):
    """Puts a folder where stage I is done and stage II is not."""
    _, whole, _ = trained
    return lambda folder: shutil.copytree(whole / "stage1", folder / "stage1")


@pytest.mark.parametrize("method", COMMANDS)
def test_killed_at_a_few_moments_it_ends_with_the_same_bits(trained, tmp_path, method):
    killed_at_random(trained[method], tmp_path, 2, seed=1)


# Of smoothing's first epoch: before the model has its name, before the log, before the state has its name; counted by
# hand from the steps that are printed where this fails.
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_killed_between_two_files_it_ends_with_the_same_bits(trained, tmp_path, share):
    steps = trained["smoothing"][2].steps

    assert killed_and_resumed(trained["smoothing"], tmp_path / "run", at=int(share * steps))


@pytest.mark.slow
def test_killed_before_every_step_on_the_disk_it_ends_with_the_same_bits(trained, tmp_path):
    for step in range(trained["smoothing"][2].steps):
        assert killed_and_resumed(trained["smoothing"], tmp_path / str(step), at=step)


@pytest.mark.slow
def test_afa_killed_before_steps_on_the_disk_ends_with_the_same_bits(trained, tmp_path):
    steps = trained["afa"][2].steps
    for step in random.Random(4).sample(range(steps), 20):
        assert killed_and_resumed(trained["afa"], tmp_path / str(step), at=step)


@pytest.mark.slow
def test_smoothing_killed_at_random_moments_ends_with_the_same_bits(trained, tmp_path):
    killed_at_random(trained["smoothing"], tmp_path, 20, seed=2)


@pytest.mark.slow
def test_afa_s_first_stage_killed_at_random_moments_ends_with_the_same_bits(trained, tmp_path):
    killed_at_random(trained["afa"], tmp_path, 20, seed=3)


@pytest.mark.slow
def test_afa_s_second_stage_killed_at_random_moments_ends_with_the_same_bits(trained, tmp_path):
    begin = stage_one(trained["afa"])
    begin(tmp_path / "alone")
    command, whole, _ = trained["afa"]
    ended = run([*command, tmp_path / "alone", "--resume"], tmp_path / "alone")
    assert_same(tmp_path / "alone", whole)

    killed_at_random(trained["afa"], tmp_path, 20, seed=5, begin=begin, whole=ended)
