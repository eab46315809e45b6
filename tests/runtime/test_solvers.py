import pytest
import torch

from fastdef.runtime import Gradient, Polyak


def test_polyak_goes_where_a_linear_loss_meets_its_target_and_no_further_than_its_longest_step():
    """L = 0.5 at a gradient direction / M: the stride is (L - 0.9 delta) M / |direction|^2, or most / M."""
    direction = torch.stack([torch.full((1, 2, 2), 2.0), torch.full((1, 2, 2), 0.01)])
    rule = Polyak(margin=0.1, most=30.0)

    stride = rule.stride(torch.tensor([0.5, 0.5]), direction, delta=torch.tensor(0.2), features=10)

    torch.testing.assert_close(stride, torch.tensor([(0.5 - 0.18) * 10 / 16, 30.0 / 10]).view(2, 1, 1, 1))


def test_on_a_linear_loss_one_polyak_step_ends_a_little_under_the_threshold():
    slope = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    t = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    offset = 3.0 - (slope * t).sum()
    delta, features = torch.tensor(1.0, dtype=torch.float64), 7

    stride = Polyak(margin=0.02, most=1e9).stride(
        (slope * t).sum()[None] + offset, features * slope, delta=delta, features=features
    )

    torch.testing.assert_close((slope * (t - stride * features * slope)).sum() + offset, 0.98 * delta)


@pytest.mark.parametrize("features", [1, 10])
def test_the_paper_s_step_is_beta_over_the_features(features):
    assert Gradient(80.0).stride(torch.ones(1), torch.ones(1), delta=torch.ones(()), features=features) == 80 / features
