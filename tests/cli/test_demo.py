import json

import pytest


@pytest.mark.slow
def test_the_demo_shows_what_attackers_who_know_the_defense_leave(run, tmp_path):
    status, out, _ = run("demo", "--limit", "64", "--json", tmp_path / "demo.json", "--figure", tmp_path / "demo.png")

    found = json.loads((tmp_path / "demo.json").read_text())
    assert status == 0
    assert found["adaptive"]["sentence"].split(" leaves ")[1].split(" of ")[0] in out
    assert found["adaptive"]["headline"] <= found["defended_clean"]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
