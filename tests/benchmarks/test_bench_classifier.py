import pytest
import torch

from benchmarks.bench_classifier import measure
from fastdef.nn import WideResNet


@pytest.mark.slow
def test_every_way_is_measured_and_held_against_float32():
    torch.manual_seed(0)
    model = WideResNet(10, 1, in_channels=1).eval()
    with torch.no_grad():
        rows = measure(model, torch.rand(4, 1, 12, 12), turns=2)

    assert list(rows) == ["PyTorch, float32", "fastdef, bfloat16", "OpenVINO, float32", "OpenVINO, bfloat16"]
    assert rows["PyTorch, float32"]["alike"] == rows["OpenVINO, float32"]["alike"] == 1
    assert all(row["ms"] > 0 for row in rows.values())
