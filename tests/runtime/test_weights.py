import pytest
import torch
from torch import nn

from fastdef.runtime.weights import fingerprint


def fused(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.01, fused=True)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()


def through_data(model):
    model[0].weight.data[0, 0, 0, 0] += 1e-7


def through_numpy(model):
    model[1].running_mean.numpy()[:] += 1


def all_alike(model):
    """An even number of equal values: their exclusive or would be what it was."""
    model[1].weight.data.fill_(2.0)


def in_place(model):
    with torch.no_grad():
        model[0].weight.mul_(1.0)


def replaced(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last])
def model(request):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).eval()
    return model.to(memory_format=request.param)


@pytest.mark.parametrize("change", [fused, through_data, through_numpy, all_alike, in_place, replaced])
def test_a_change_is_seen_whoever_made_it(model, change):
    before = fingerprint(model)

    change(model)

    assert fingerprint(model) != before


def test_a_call_changes_nothing(model):
    before = fingerprint(model)

    model(torch.rand(2, 3, 8, 8))

    assert fingerprint(model) == before


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("offset", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.int64])
def test_the_last_value_of_a_buffer_of_any_kind_counts(size, offset, dtype):
    model = nn.Module()
    model.register_buffer("values", torch.zeros(size + offset, dtype=dtype)[offset:])
    before = fingerprint(model)

    model.values.numpy()[-1] = 1

    assert fingerprint(model) != before
