import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.scaling import LINKS, Link, Messages, messages, table
from fastdef import distributed
from fastdef.losses import PGDAT
from fastdef.nn import build, convert_to_multi_bn, parse_architecture
from fastdef.training import Branches, TrainConfig
from fastdef.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
BOTH = {name: {"images_per_second": 5000.0} for name in ("one batch", "one batch, compiled")}


def test_the_messages_that_are_counted_are_those_that_are_sent(monkeypatch):
    """Two ranks that both have this one's values: what would be sent is seen, and nothing is."""
    sent = {"gathered": [], "total": []}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)

    def gathered(value):
        sent["gathered"].append(value.nbytes)
        return torch.stack([value, value])

    def total(value):
        sent["total"].append(value.nbytes)
        return 2 * value

    monkeypatch.setattr(distributed, "all_gather", gathered)
    monkeypatch.setattr(distributed, "all_reduce", total)
    model = convert_to_multi_bn(build(parse_architecture("wrn-10-1")), 2)

    Trainer(Branches(model, PGDAT(), [0.0, 8 / 255]), TrainConfig()).step(torch.rand(4, 3, 12, 12), torch.arange(4), 0)

    expected = messages("wrn-10-1", branches=2, segments=2)
    *statistics, gradients = sent["total"]
    assert gradients == expected.gradients
    assert sorted(statistics) == sorted(sent["gathered"]) == sorted(expected.statistics)


def test_a_ring_sends_what_rings_send():
    one = Messages(gradients=1000, statistics=())

    assert one.seconds(1, Link(1.0, 1.0)) == 0
    assert one.seconds(4, Link(1000.0, 0.0)) == pytest.approx(1.5)
    assert one.seconds(4, Link(1e30, 2.0)) == pytest.approx(12)
    assert Messages(0, (1000,)).seconds(2, Link(1000.0, 0.0)) == pytest.approx(2.0)  # 1000 gathered, 1000 reduced


def test_a_slower_link_does_less_and_none_more_than_the_ranks_times_one():
    measured = {"architecture": "wrn-28-10", "branches": 5, "batch": 128}
    rows = table(measured | {"contenders": BOTH})

    shares = {row["link"]: row["share"] for row in rows if row["step"] == "one batch"}
    assert list(shares) == list(LINKS)
    assert all(0 < share < 1 for share in shares.values())
    assert rows[0]["images_per_second"] == pytest.approx(8 * 5000 * rows[0]["share"])
    assert sorted(list(shares.values())[1:4], reverse=True) == list(shares.values())[1:4]


def test_it_says_that_it_is_a_computation(tmp_path):
    rates = tmp_path / "training.json"
    made = {"machine": {"name": "a machine"}, "architecture": "wrn-10-1", "branches": 5, "batch": 8}
    rates.write_text(json.dumps(made | {"contenders": BOTH}))

    command = [sys.executable, "-m", "benchmarks.scaling", str(rates)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()

    assert told[0] == f"COMPUTED, not measured, from the rates of one a machine in {rates}"
    assert len(told) == 2 + 2 * len(LINKS)
    assert all(line.endswith(" assumed") for line in told[2:])
