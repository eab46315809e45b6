import json
import sys

import pytest


@pytest.mark.slow
def test_engines_are_put_side_by_side(run, tmp_path):
    status, out, _ = run(
        "bench", "engine", "--batches", "1,2", "--turns", "1", "--device", "cpu", "--json", tmp_path / "o"
    )

    found = json.loads((tmp_path / "o").read_text())
    assert status == 0
    assert list(found["engines"]) == ["PyTorch", "PyTorch, compiled", "ONNX Runtime, whole", "ONNX Runtime, driven"]
    for row in found["engines"].values():
        assert set(row["batches"]) == {"1", "2"}
        assert row["peak_bytes"] > 2**26
        assert row["file_bytes"] > 2**18
    assert "ONNX Runtime, driven" in out


def test_wrong_batches_are_refused(refuse):
    assert "--batches needs sizes" in refuse("bench", "engine", "--batches", "1,zero")
    both = ["--model", "model.safetensors", "--architecture", "wrn-10-1"]
    assert "--architecture is in place of --model, got both" in refuse("bench", "defense", *both)


def test_another_step_size_is_that_of_the_loop(run, monkeypatch):
    timed = []

    def caught(setting, **_):
        timed.append(setting.defense)
        raise ValueError("caught")

    monkeypatch.setattr(sys.modules["fastdef.cli.bench"], "bench_defense", caught)

    run("bench", "defense", "--beta", "40", "--count", "2", "--device", "cpu")

    assert timed[0].beta == timed[0].solver.beta == 40.0
