import json
import sys

import pytest


@pytest.mark.slow
def test_formats_are_put_side_by_side_and_agree(run, tmp_path):
    status, out, _ = run(
        "bench",
        "formats",
        "--batches",
        "1,2",
        "--turns",
        "1",
        "--device",
        "cpu",
        "--lockstep",
        "--json",
        tmp_path / "o",
    )

    found = json.loads((tmp_path / "o").read_text())
    assert status == 0
    assert list(found["formats"]) == [
        "PyTorch",
        "PyTorch, compiled",
        "ONNX Runtime, whole",
        "ONNX Runtime, driven",
        "AOTInductor, whole",
        "AOTInductor, driven",
        "OpenVINO, whole",
        "OpenVINO, driven",
        "OpenVINO in bfloat16, whole",
        "OpenVINO in bfloat16, driven",
        "ONNX Runtime, whole, in lockstep",
    ]
    for row in found["formats"].values():
        assert row["file_bytes"] > 2**18
        if "refused" not in row:
            assert set(row["batches"]) == {"1", "2"}
            assert row["peak_bytes"] > 2**26
            assert row["decisions_equal"] == 1
    assert "ONNX Runtime, driven" in out


def test_wrong_batches_are_refused(refuse):
    assert "--batches needs sizes" in refuse("bench", "formats", "--batches", "1,zero")
    both = ["--model", "model.safetensors", "--architecture", "wrn-10-1"]
    assert "--architecture is in place of --model, got both" in refuse("bench", "defense", *both)
    assert "--architecture is in place of --model and --export" in refuse("bench", "formats", *both)


def test_another_step_size_is_that_of_the_loop(run, monkeypatch):
    timed = []

    def caught(setting, **_):
        timed.append(setting.defense)
        raise ValueError("caught")

    monkeypatch.setattr(sys.modules["fastdef.cli.bench"], "bench_defense", caught)

    run("bench", "defense", "--beta", "40", "--limit", "2", "--device", "cpu")

    assert timed[0].beta == timed[0].solver.beta == 40.0


@pytest.mark.slow
def test_the_defense_is_timed_beside_a_plain_loop_and_beside_the_classifier(run, tmp_path):
    brief = ["--architecture", "wrn-10-1", "--limit", "4", "--batch-size", "2", "--turns", "1", "--half", "none"]
    status, out, _ = run("bench", "defense", *brief, "--device", "cpu", "--json", tmp_path / "o")

    found = json.loads((tmp_path / "o").read_text())
    assert status == 0
    assert list(found["contenders"]) == ["naive", "naive_compiled", "truncated", "traced", "compiled", "slots"]
    ways = found["latency_seconds"]["1"]
    assert set(ways) == {"defended", "undefended"}
    assert 0 < ways["undefended"]["p50"] <= ways["undefended"]["p99"]
    assert ways["defended"]["p50"] > ways["undefended"]["p50"]
    times = ways["defended"]["p50"] / ways["undefended"]["p50"]
    assert f"The defense costs {times:.0f} times the classifier at p50" in out
