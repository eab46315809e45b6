import json

import pytest

from benchmarks.stages import Stage, run


def test_what_is_done_is_not_done_again(tmp_path):
    stages = [Stage("version", ["--version"]), Stage("help", ["--help"])]

    assert run(stages[:1], tmp_path, minutes=None)
    before = (tmp_path / "version.log").stat().st_mtime_ns
    assert run(stages, tmp_path, minutes=None)

    assert (tmp_path / "version.log").stat().st_mtime_ns == before
    assert list(json.loads((tmp_path / "stages.json").read_text())) == ["version", "help"]


def test_out_of_time_it_stops_and_says_so(tmp_path, capsys):
    assert not run([Stage("version", ["--version"])], tmp_path, minutes=0)
    assert "the same command goes on here" in capsys.readouterr().out


def test_a_stage_that_fails_ends_it_with_its_last_words(tmp_path):
    with pytest.raises(SystemExit, match="load_dataset needs root"):
        run([Stage("wrong", ["evaluate", "model.safetensors", "--data", "cifar10"])], tmp_path, minutes=None)
