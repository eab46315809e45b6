"""An evaluation on two processes finds what one finds."""

import json
from pathlib import Path

import pytest

pytest.importorskip("pyautoattack", reason="pyautoattack is not installed here")
SCRIPT = Path(__file__).parent / "ranked" / "evaluations.py"


@pytest.fixture(scope="module")
def found(on_ranks, tmp_path_factory):
    """What one process found, and what each of two did."""
    folder = tmp_path_factory.mktemp("found")
    for count in (1, 2):
        on_ranks(count, SCRIPT, folder)
    return [json.loads((folder / f"{count}.json").read_text()) for count in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["static", "strengths", "adaptive"])
def test_every_rank_finds_what_one_alone_does(found, suite):
    (alone,), both = found

    assert [rank[suite] for rank in both] == [alone[suite]] * 2


@pytest.mark.slow
def test_the_work_is_shared(found):
    (alone,), both = found

    assert alone["told"] == [8, 8, 4]
    assert [rank["told"] for rank in both] == [[16, 4], [12]]  # three batches: the first has two of them
    shares = [rank["units"] for rank in both]
    assert sorted(shares[0] + shares[1]) == sorted(alone["units"])
    assert min(map(len, shares)) > len(alone["units"]) / 3


@pytest.mark.slow
def test_the_adaptive_evaluation_on_several_ranks_needs_a_folder(found):
    (alone,), both = found

    assert isinstance(alone["unshared"], bool)
    assert both[0]["unshared"] == "evaluate_adaptive on 2 processes needs a folder that all of them see, got none"
