"""The model while it is attacked, and one that cannot be."""

import pytest
import torch
from torch import nn

from fastdef.attacks import check_differentiable, frozen_eval
from fastdef.attacks._pgd import anywhere


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)).train()


def test_inside_nothing_trains_and_afterwards_all_is_as_it_was(model):
    model[1].bias.requires_grad_(False)

    with frozen_eval(model):
        assert not any(module.training for module in model.modules())
        assert not any(weight.requires_grad for weight in model.parameters())

    assert all(module.training for module in model.modules())
    assert [weight.requires_grad for weight in model.parameters()] == [True, False, True, True]


def test_a_model_that_gives_no_gradient_is_refused_and_one_that_does_is_not(model):
    images = torch.rand(2, 1, 2, 2)

    check_differentiable(model, images)

    with pytest.raises(ValueError, match="need a differentiable model"):
        check_differentiable(nn.Sequential(Detached(), model), images)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


def test_a_random_start_is_on_all_sides_of_the_image_and_in_the_ball():
    images = torch.full((1, 1, 50, 50), 0.5)

    start = anywhere(images, 0.1, torch.Generator().manual_seed(0)) - images

    assert -0.1 <= start.min() < -0.09
    assert 0.09 < start.max() <= 0.1
    assert start.abs().mean() == pytest.approx(0.05, abs=0.005)
    assert anywhere(torch.ones(1, 1, 9, 9), 0.1, None).max() <= 1
