"""An adaptive evaluation that is killed: it goes on after the last finished unit, and ends with the same numbers."""

import json

import pytest

from tests.failures.processes import moments, run


@pytest.fixture(scope="module")
def evaluated(models, data, tmp_path_factory):
    """Evaluates a model: gives the command without its folder, the folder, and how it ended."""
    base = tmp_path_factory.mktemp("whole")

    def evaluate(name, rows):
        command = ["evaluate-adaptive", models[name], "--rows", rows, "--limit", 4, *data]
        command += ["--device", "cpu", "--report"]
        ended = run([*command, base / name], base / name)
        assert ended.status in (0, 1), ended.told  # 1: the suite's checks on itself, of a network that knows nothing
        return command, base / name, ended

    return evaluate


def report(folder):
    """All but the times."""
    found = json.loads((folder / "report.json").read_text())
    for line in found["lines"]:
        del line["seconds_to_attack_an_image"], line["seconds_to_answer_an_image"]
    return found


def units(folder):
    """When each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("units/*") if not path.name.startswith(".")}


def killed_and_resumed(evaluated, folder, **when):
    """Whether it was killed before its end; if so, it went on and ended as the one that nobody killed."""
    command, whole, ended = evaluated
    killed = run([*command, folder], folder, **when)
    if not killed.killed:
        assert killed.status == ended.status, killed.told
        return False
    done = units(folder)

    resumed = run([*command, folder, "--resume"], folder)

    assert resumed.status == ended.status, resumed.told
    assert done.items() <= units(folder).items()  # nothing that was done is done again
    assert units(folder).keys() == units(whole).keys()
    assert report(folder) == report(whole)
    files = {path.name for path in folder.iterdir()}
    assert files == {path.name for path in whole.iterdir()}
    assert not list(folder.rglob(".fastdef-*"))
    return True


def killed_at_random(evaluated, tmp_path, count, *, seed):
    kills = 0
    for number, after in enumerate(moments(count, evaluated[2], seed=seed)):
        kills += killed_and_resumed(evaluated, tmp_path / str(number), after=after)
        if kills == count:
            return
    pytest.fail(f"killed {kills} times of {count}: the others came after the end")


def test_killed_at_a_few_moments_it_ends_with_the_same_numbers(evaluated, tmp_path):
    killed_at_random(evaluated("plain", "0"), tmp_path, 2, seed=1)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_numbers(evaluated, tmp_path):
    killed_at_random(evaluated("defended", "0,3"), tmp_path, 20, seed=2)


@pytest.mark.slow
def test_killed_before_steps_on_the_disk_it_ends_with_the_same_numbers(evaluated, tmp_path):
    plain = evaluated("plain", "0")
    for number in range(20):
        assert killed_and_resumed(plain, tmp_path / str(number), at=number * plain[2].steps // 20)
