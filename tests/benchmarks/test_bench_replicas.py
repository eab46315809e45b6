import json

import pytest

from benchmarks import bench_replicas
from fastdef.assets import ASSETS

pytest.importorskip("uvicorn", reason="needs fastdef[serve]")


@pytest.mark.slow
def test_a_door_is_measured_and_its_figures_are_written(monkeypatch, tmp_path, capsys):
    door = "fastdef serve"
    monkeypatch.setattr(bench_replicas, "DOORS", {door: bench_replicas.DOORS[door]})

    bench_replicas.main(ASSETS / "smoothing.safetensors", images=32, turns=1, json_file=tmp_path / "found.json")

    row = json.loads((tmp_path / "found.json").read_text())["doors"][door]
    assert door in capsys.readouterr().out
    assert row["images_per_second"] > 1
    assert row["p50_ms"] <= row["p99_ms"]
    assert row["refused_per_second"] > row["images_per_second"]


def test_the_ledger_is_timed():
    assert 0 < bench_replicas.ledger_ms() < 60_000
