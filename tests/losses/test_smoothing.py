import torch

from fastdef.losses import smoothing_penalty, smoothness


def test_the_penalty_is_the_mean_of_the_larger_of_loss_and_delta():
    f = torch.tensor([[-1.0, 1.0], [-0.01, 0.01]])

    penalty, losses = smoothing_penalty(f, delta=0.02)

    torch.testing.assert_close(penalty, torch.tensor((1.0 + 0.02) / 2))
    torch.testing.assert_close(losses, torch.tensor([1.0, 0.01]))


def test_below_delta_and_at_it_there_is_no_gradient():
    f = torch.tensor([[-1.0, 1.0], [-0.5, 0.5], [-0.25, 0.25]], requires_grad=True)

    smoothing_penalty(f, delta=0.5)[0].backward()

    torch.testing.assert_close(f.grad[0], torch.tensor([-1.0, 1.0]) / 2 / 3)
    assert torch.equal(f.grad[1:], torch.zeros(2, 2))


def test_smoothness_does_not_change_with_scale():
    f = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(smoothness(f), smoothness(f * 1e-3))
    torch.testing.assert_close(smoothness(torch.randn(1, 100_000)), torch.tensor([0.798]), rtol=0.02, atol=0)


def test_smoothness_of_two_values_evenly_mixed_is_one_and_of_constant_features_zero():
    f = torch.tensor([[-3.0, 3.0, 3.0, -3.0], [2.0, 2.0, 2.0, 2.0]])

    torch.testing.assert_close(smoothness(f), torch.tensor([1.0, 0.0]))


def test_delta_is_the_papers_where_none_is_given():
    f = torch.tensor([[-0.01, 0.01]])

    torch.testing.assert_close(smoothing_penalty(f)[0], torch.tensor(0.02))
