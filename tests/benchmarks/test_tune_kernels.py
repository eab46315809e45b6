import pytest

from benchmarks.tune_kernels import entry
from fastdef.kernels.configurations import CANDIDATES, AfaFuse, Smoothing


@pytest.mark.parametrize(("ms", "pays"), [(0.96, True), (0.98, False), (1.5, False)])
def test_an_entry_is_made_where_a_launch_is_three_percent_faster_than_the_default(ms, pays):
    times = {repr(Smoothing()): 1.0, repr(Smoothing(8192, 512, 8)): ms, repr(Smoothing(2048)): 2.0}

    line = entry({"kernel": "smoothing", "key": [4096, "torch.bfloat16"], "candidates": times})

    assert line == ("(4096, torch.bfloat16): Smoothing(block=8192, programs=512, warps=8)," if pays else None)


def test_every_default_is_a_candidate_for_itself():
    assert Smoothing() in CANDIDATES["smoothing"]
    assert AfaFuse() in CANDIDATES["afa_fuse"]
