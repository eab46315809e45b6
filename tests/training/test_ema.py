import torch
from torch import nn

from fastdef.training.ema import EMA


def test_the_average_keeps_less_of_itself_early_and_decay_later():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    average = EMA(model, 0.5)
    nn.init.zeros_(model.weight)

    average.update(0)
    torch.testing.assert_close(average.tensors["weight"], torch.tensor([[0.1]]))

    average.update(1000)
    torch.testing.assert_close(average.tensors["weight"], torch.tensor([[0.05]]))


def test_buffers_are_copied():
    model = nn.BatchNorm2d(2)
    average = EMA(model, 0.9)
    model(torch.randn(3, 2, 4, 4) + 5)

    average.update(1000)

    assert torch.equal(average.tensors["running_mean"], model.running_mean)
    assert int(average.tensors["num_batches_tracked"]) == 1
    assert average.tensors["running_mean"].data_ptr() != model.running_mean.data_ptr()
