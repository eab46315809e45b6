from benchmarks.architectures import NETWORKS, PLAN, TEN, measure, table


def test_a_network_of_timm_is_traced_and_steps_as_autograd_says():
    row = measure("tinynet_e", size=32, compile=False, turns=1)

    assert row["apart"] < 1e-9
    assert row["plainly"] is None
    assert row["gain"] > 0


def test_every_row_of_the_plan_is_a_network_and_its_layer():
    assert len({(name, size, compile) for name, size, compile in PLAN}) == len(PLAN)
    assert {name for name, _, _ in PLAN} == set(NETWORKS)
    assert len(NETWORKS) >= 40
    assert set(TEN) <= set(NETWORKS)


def test_the_page_says_why_where_there_is_no_figure():
    row = {"name": "a", "layer": "b", "size": 64, "compiled": True}
    where = {"command": "c", "name": "machine", "threads": 1, "torch": "2"}

    page = table([{**row, "apart": 1e-13, "gain": 1.25, "plainly": None}, {**row, "refused": "too small"}], where)

    assert "| a | `b` | 64 | yes | 1e-13 | 1.2 |  |" in page
    assert "| a | `b` | 64 | yes | refused |  | too small |" in page
