"""The rounded copy of a loop, in closed form."""

import pytest
import torch

from fastdef.attacks import untargeted, white_box
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.unroll import RoundedKinks, descend, pull_back, rounded_losses, unrolled
from fastdef.nn import prefix

SHARE = 0.1


def rounded(x, radius):
    return (x * x + radius * radius).sqrt()


@pytest.fixture
def x():
    """Two samples of another scale, each with its kinks."""
    values = torch.tensor([[-3.0, -0.1, 0.0, 0.1, 3.0]], dtype=torch.float64)
    return torch.cat([values, 10 * values])


@pytest.fixture
def radius(x):
    return SHARE * (x * x).mean(1, keepdim=True).sqrt()


@pytest.mark.parametrize("absolute", [torch.abs, torch.Tensor.abs, abs])
def test_an_absolute_value_is_a_root_whose_radius_is_a_share_of_the_sample_s_scale(x, radius, absolute):
    with RoundedKinks(SHARE):
        found = absolute(x)

    torch.testing.assert_close(found, rounded(x, radius))


@pytest.mark.parametrize(
    "relu", [torch.relu, torch.relu_, torch.nn.functional.relu, torch.Tensor.relu, torch.nn.ReLU(inplace=True)]
)
def test_a_relu_is_half_the_sum_of_a_value_and_its_rounded_size(x, radius, relu):
    with RoundedKinks(SHARE):
        found = relu(x.clone())

    torch.testing.assert_close(found, (x + rounded(x, radius)) / 2)


def test_the_slope_takes_the_scale_for_a_constant(x, radius):
    wanted = x.requires_grad_()

    with RoundedKinks(SHARE):
        (slope,) = torch.autograd.grad(wanted.abs().sum(), wanted)

    torch.testing.assert_close(slope, (x / rounded(x, radius)).detach())


def test_all_else_is_left_as_it_is(x):
    with RoundedKinks(SHARE):
        found = torch.sum(x.clone(), dim=1, keepdim=True), torch.sqrt(x * x), torch.get_default_dtype()

    torch.testing.assert_close(found[0], torch.sum(x, dim=1, keepdim=True))
    torch.testing.assert_close(found[1], x.abs())
    assert found[2] == torch.get_default_dtype()


def test_a_sample_of_zeros_has_a_slope(x):
    wanted = torch.zeros_like(x).requires_grad_()

    with RoundedKinks(SHARE):
        (slope,) = torch.autograd.grad(wanted.abs().sum(), wanted)

    assert torch.equal(slope, torch.zeros_like(x))


def test_the_rounding_is_small_beside_the_scale_where_nothing_else_is_asked_for():
    x = torch.tensor([[0.0, 1.0, -1.0]])

    with RoundedKinks():
        kink = x.abs()[0, 0]

    assert 0.1 < float(kink / (2 / 3) ** 0.5) < 0.5


def test_the_copy_s_loss_is_the_mean_rounded_distance_of_the_features_from_their_mean(defense, dataset):
    images = dataset.floats(0, 3)

    found = rounded_losses(defense)(images)

    with RoundedKinks():
        features = prefix(defense.model, defense.layer)(images).flatten(1)
        expected = [(sample - sample.mean())[None].abs().mean() for sample in features]
    torch.testing.assert_close(found, torch.stack(expected))


def mean(t):
    """A loss whose gradient is the same everywhere: 1/4 for each of four pixels."""
    return t.flatten(1).mean(1)


def images_of(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)


def test_samples_move_until_their_loss_is_the_threshold_and_not_beyond_it():
    start = images_of(1.0, 0.75, 0.5, 0.0)

    points, moved = descend(mean, start, beta=1.0, delta=0.5, steps=9)

    assert [mean(point).tolist() for point in points] == [
        [1.0, 0.75, 0.5, 0.0],
        [0.75, 0.5, 0.5, 0.0],
        [0.5, 0.5, 0.5, 0.0],
    ]
    assert [moves.tolist() for moves in moved] == [[True, True, False, False], [True, False, False, False]]


def test_no_loss_is_asked_for_when_all_have_stopped():
    asked = []

    descend(lambda t: asked.append(len(t)) or mean(t), images_of(0.0, 0.5), beta=1.0, delta=0.5, steps=9)

    assert asked == [2]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_loop_ends_after_its_steps(steps):
    points, moved = descend(mean, images_of(9.0), beta=1.0, delta=0.0, steps=steps)

    assert len(points) == steps + 1
    assert len(moved) == steps


def test_a_gradient_is_carried_back_through_the_curvature_of_what_moved():
    """Of the loss sum(t^2) / 2 the second derivative is one: each step takes 1 - beta of the gradient."""

    def half_square(t):
        return t.square().flatten(1).sum(1) / 2

    start = images_of(1.0, 4.0)
    points, moved = descend(half_square, start, beta=0.25, delta=3.0, steps=2)

    found = pull_back(half_square, torch.ones_like(start), points, moved, beta=0.25)

    assert [moves.tolist() for moves in moved] == [[False, True], [False, True]]
    torch.testing.assert_close(found, images_of(1.0, 0.75**2))


def test_the_mean_over_draws_of_an_unrolled_attack_is_that_of_single_ones(defense, dataset):
    images, goal, rows = dataset.floats(0, 3), untargeted(torch.arange(3)), torch.arange(3)

    def ask(eot, **options):
        return unrolled(defense, goal, NoiseSeeds(rows, SeedStream.ATTACK), eot=eot, steps=2, **options)

    both, single = ask(2, batch=4)(images, rows), ask(1)
    first, second = single(images, rows), single(images, rows)

    assert not torch.equal(first.gradient, second.gradient)
    for together, one, two in zip(both, first, second, strict=True):
        torch.testing.assert_close(together, (one + two) / 2)


def test_an_unrolled_attack_asks_the_model_at_the_loop_s_end_and_carries_its_gradient_back(defense, dataset):
    images, goal, rows = dataset.floats(0, 3), untargeted(torch.arange(3)), torch.arange(3)

    found = unrolled(defense, goal, NoiseSeeds(rows, SeedStream.ATTACK), eot=1, steps=2)(images, rows)

    losses, how = rounded_losses(defense), {"beta": defense.beta}
    noised = defense.noised(images, ids=NoiseSeeds(rows, SeedStream.ATTACK).next(rows, 1))
    points, moved = descend(losses, noised, delta=defense.delta, steps=2, **how)
    end = white_box(defense.model, goal)(points[-1], rows)
    assert len(moved) == 2
    torch.testing.assert_close(found.loss, end.loss)
    torch.testing.assert_close(found.right, end.right)
    torch.testing.assert_close(found.gradient, pull_back(losses, end.gradient, points, moved, **how))
    assert not torch.allclose(found.gradient, end.gradient)
