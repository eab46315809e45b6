"""Batch norms on two processes against the same on one, where they are torch's own kernel."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastdef import distributed
from fastdef.nn import joint_statistics

SCRIPT = Path(__file__).parent / "ranked" / "batch_norms.py"


@pytest.fixture(scope="module")
def found(on_ranks, tmp_path_factory):
    """What one process and what two have computed, by name."""
    files = [tmp_path_factory.mktemp("found") / f"{count}.safetensors" for count in (1, 2)]
    for count, file in enumerate(files, start=1):
        on_ranks(count, SCRIPT, file)
    return [load_file(file) for file in files]


# Half precision: an output may be rounded the other way, by its last bit, and a sum has many of them.
TOLERANCES = {"float64": (1e-12, 1e-12), "float32": (1e-5, 1e-5), "bfloat16": (2e-2, 5e-2)}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("kind", "parameters"), [("multi", 2), ("plain", 2), ("bare", 0)])
def test_two_ranks_normalize_by_the_joint_batch_forward_and_backward(found, kind, parameters, dtype):
    one, two = found
    names = [name for name in one if name.startswith(f"{kind}.{dtype}.")]
    relative, absolute = TOLERANCES[dtype]

    assert len(names) == 2 * (2 * (2 + parameters) + 3 + parameters)
    for name in names:
        torch.testing.assert_close(
            two[name], one[name], rtol=relative, atol=absolute, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_one_rank_leaves_every_class_as_it_is():
    model = nn.Sequential(nn.BatchNorm2d(2))

    with joint_statistics(model):
        assert type(model[0]) is nn.BatchNorm2d


def test_on_several_ranks_a_batch_norm_of_another_kind_is_refused_and_nothing_changes(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2))

    with (
        pytest.raises(ValueError, match=r"several processes needs BatchNorm2d .* got BatchNorm1d"),
        joint_statistics(model),
    ):
        pass
    assert type(model[0]) is nn.BatchNorm2d
