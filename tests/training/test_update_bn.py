import torch
from torch import nn

from fastdef.training.update_bn import update_bn


def test_statistics_are_the_mean_over_the_batches_whatever_they_were():
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(7.0)
    batches = [torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    update_bn(nn.Sequential(norm), batches)

    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))


def test_weights_momentum_and_counter_stay_and_the_model_is_in_eval_mode():
    norm = nn.BatchNorm2d(3, momentum=0.3)
    norm(torch.randn(2, 3, 4, 4))
    plain = nn.BatchNorm2d(3, track_running_stats=False)

    update_bn(nn.Sequential(norm, plain), [torch.randn(2, 3, 4, 4)] * 2)

    assert norm.momentum == 0.3
    assert int(norm.num_batches_tracked) == 1
    assert not norm.training
    assert torch.equal(norm.weight, torch.ones(3))
