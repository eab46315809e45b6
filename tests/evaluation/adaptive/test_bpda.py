from dataclasses import replace

import pytest
import torch

import fastdef
from fastdef.attacks import untargeted, white_box
from fastdef.evaluation.adaptive.bpda import bpda, in_parts, iterates, trajectory
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream, noise_seeds
from fastdef.evaluation.adaptive.target import FixedBatch, Target
from fastdef.evaluation.adaptive.unroll import RoundedKinks, descend, pull_back, rounded_losses, unrolled
from fastdef.nn import build, parse_architecture, prefix
from fastdef.ops import smoothing_loss
from tests.evaluation.adaptive.linear import LINEAR, SIDE

BETA, STEPS = 50.0, 6
ROWS = torch.arange(2)


def seeds():
    return NoiseSeeds(ROWS, SeedStream.ATTACK)


@pytest.fixture(scope="module")
def defense():
    """A WRN in float64 with running statistics that are not those of its initialisation."""
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-2")).double().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return fastdef.ActiveDefense(model, beta=BETA, delta=0.2, max_steps=STEPS, compile=False)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 12, 12, generator=generator, dtype=torch.float64), torch.tensor([1, 2, 3, 4])


def unroll(losses, model, start, labels, delta):
    """The gradient by autograd through every step, second derivatives and all."""
    start = start.clone().requires_grad_()
    t = start
    for _ in range(STEPS):
        loss = losses(t)
        (gradient,) = torch.autograd.grad(loss.sum(), t, create_graph=True)
        t = torch.where((loss > delta)[:, None, None, None], t - BETA * gradient, t)
    value = torch.nn.functional.cross_entropy(model(t), labels, reduction="sum")
    return torch.autograd.grad(value, start)[0]


def plain_losses(network):
    """L_F by operations that autograd can differentiate twice."""

    def losses(images):
        features = network(images).flatten(1)
        return (features - features.mean(1, keepdim=True)).abs().mean(1)

    return losses


def between(losses, start):
    """A threshold that some samples reach on the way and others do not."""
    return float(losses(start).median()) * 0.995


def test_bpda_is_the_gradient_of_the_unrolled_loop(defense, batch):
    images, labels = batch
    ids = NoiseSeeds(torch.arange(4), SeedStream.ATTACK)
    noised = defense.noised(images, ids=noise_seeds(torch.arange(4), range(1), SeedStream.ATTACK))
    losses = plain_losses(prefix(defense.model, "block1"))
    defense.delta = between(losses, noised)

    ask = bpda(Target.defended(defense), untargeted(labels), ids, eot=1, steps=STEPS)
    found = ask(images, torch.arange(4)).gradient

    expected = unroll(losses, defense.model, noised, labels, defense.delta)
    taken = defense.smooth(images, ids=noise_seeds(torch.arange(4), range(1), SeedStream.ATTACK)).steps
    assert 0 < int(taken.sum()) < 4 * STEPS  # some stop on the way
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_smoothed_unroll_has_the_true_gradient_of_its_copy(defense, batch):
    images, labels = batch
    losses = rounded_losses(defense)
    noised = defense.noised(images)
    delta = between(losses, noised)

    points, moved = descend(losses, noised, beta=BETA, delta=delta, steps=STEPS)
    end = white_box(defense.model, untargeted(labels))(points[-1], torch.arange(4)).gradient
    found = pull_back(losses, end, points, moved, beta=BETA)

    expected = unroll(losses, defense.model, noised, labels, delta)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (end - expected).abs().max() > 1e-3 * expected.abs().max()  # where BPDA's would be another


def test_rounded_kinks_are_close_to_the_kinks_and_smooth():
    x = torch.tensor([[-3.0, -0.01, 0.0, 0.01, 3.0]], dtype=torch.float64, requires_grad=True)

    with RoundedKinks(0.1):
        relu, absolute, function = torch.relu(x), x.abs(), torch.nn.functional.relu(x)

    (slope,) = torch.autograd.grad(relu.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(relu, x.clamp_min(0), rtol=0, atol=0.11)
    torch.testing.assert_close(absolute, x.abs(), rtol=0, atol=0.2)
    assert torch.equal(relu, function)
    assert curvature[0, 2] > 1  # a kink has none


def test_the_mean_over_draws_is_the_mean_of_single_draws(defense, batch):
    images, labels = batch
    target, goal, rows = Target.defended(defense), untargeted(labels), torch.arange(4)

    both = bpda(target, goal, NoiseSeeds(torch.arange(4), SeedStream.ATTACK), eot=2, steps=3)(images, rows)

    single = bpda(target, goal, NoiseSeeds(torch.arange(4), SeedStream.ATTACK), eot=1, steps=3)
    first, second = single(images, rows), single(images, rows)
    assert not torch.equal(first.gradient, second.gradient)
    for mean, one, two in zip(both, first, second, strict=True):
        torch.testing.assert_close(mean, (one + two) / 2)


def test_the_trajectory_ends_where_the_defense_does(defense, batch):
    images, _ = batch
    ids = torch.arange(4)

    path = list(trajectory(defense, STEPS)(images, ids))

    assert len(path) == STEPS + 1
    assert torch.equal(path[0], defense.noised(images, ids=ids))
    torch.testing.assert_close(path[-1], defense.smooth(images, ids=ids).images)


def test_the_step_of_a_trajectory_is_traced_once_for_every_batch_size(defense, batch, monkeypatch):
    images, _ = batch
    traced, made = [], defense.masked_step
    monkeypatch.setattr(defense, "masked_step", lambda like: traced.append(len(like)) or made(like))
    path = trajectory(defense, 2)

    whole = list(path(images, torch.arange(4)))
    part = list(path(images[:3], torch.arange(3)))

    assert traced == [4]
    torch.testing.assert_close(part[-1], whole[-1][:3])


def test_the_gradient_along_the_way_is_the_mean_over_its_points(defense, batch):
    images, labels = batch
    goal, rows = untargeted(labels), torch.arange(4)
    classify = white_box(defense.model, goal)

    ask = iterates(Target.defended(defense), goal, NoiseSeeds(rows, SeedStream.ATTACK), eot=1, steps=2)
    found = ask(images, rows)

    path = trajectory(defense, 2)(images, noise_seeds(rows, range(1), SeedStream.ATTACK))
    expected = torch.stack([classify(point, rows).gradient for point in path]).mean(0)
    torch.testing.assert_close(found.gradient, expected)


def test_an_unrolled_attack_sees_as_many_draws_as_it_asks_for(defense, batch):
    images, labels = batch

    query = unrolled(
        defense, untargeted(labels), NoiseSeeds(torch.arange(4), SeedStream.ATTACK), eot=3, steps=2, batch=5
    )(images, torch.arange(4))

    assert query.gradient.shape == images.shape
    assert query.loss.shape == query.right.shape == (4,)
    assert bool(((3 * query.right).round() == 3 * query.right).all())


def test_parts_make_the_whole(defense, batch):
    images, labels = batch
    ask = white_box(defense.model, untargeted(labels))

    whole, parts = ask(images, torch.arange(4)), in_parts(ask, 3)(images, torch.arange(4))

    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_a_fixed_batch_answers_as_the_model_does_and_runs_one_size_only(defense, batch):
    images, _ = batch
    sizes = []

    class Watched(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return defense.model(x)

    fixed = FixedBatch(Watched(), 3)
    wanted = images.clone().requires_grad_()

    answers = fixed(wanted)
    (gradient,) = torch.autograd.grad(answers.sum(), wanted)

    assert sizes == [3, 3]
    torch.testing.assert_close(answers.detach(), defense.model(images))
    torch.testing.assert_close(gradient, torch.autograd.grad(defense.model(wanted).sum(), wanted)[0])


def test_no_two_draws_share_an_id():
    ids = torch.tensor([0, 1, (1 << 24) - 1])

    drawn = [noise_seeds(ids, range(0, 20), stream) for stream in SeedStream]
    draws = NoiseSeeds(ids, SeedStream.ATTACK)
    later = torch.cat([draws.next(torch.tensor([0, 2]), 5) for _ in range(3)])

    assert len(torch.cat(drawn).unique()) == len(SeedStream) * 60
    assert len(later.unique()) == 30
    assert int(torch.cat(drawn).min()) >= 0


def test_the_smoothing_loss_here_is_the_library_s(defense, batch):
    images, _ = batch
    network = prefix(defense.model, "block1")

    torch.testing.assert_close(plain_losses(network)(images), smoothing_loss(network(images)).double())


def asked_with(seen, *, random=True):
    """A target that notes the ids and steps of every purification, and adds nothing."""
    target = Target.purified(LINEAR, lambda images, ids: images, random=random)

    def purify(images, ids, steps):
        seen.append((ids, steps))
        return images

    return replace(target, purify=purify)


@pytest.mark.parametrize(("random", "draws"), [(True, 3), (False, 1)])
def test_a_gradient_is_the_mean_of_draws_only_where_something_is_random(random, draws):
    seen = []
    ask = bpda(asked_with(seen, random=random), untargeted(torch.zeros(2).long()), seeds(), eot=3, steps=4)

    ask(torch.rand(2, 1, SIDE, SIDE), ROWS)

    assert [(ids.tolist(), steps) for ids, steps in seen] == [(seeds().next(ROWS, draws).tolist(), 4)]


def test_the_loop_is_not_cut_unless_steps_are_given():
    seen = []

    bpda(asked_with(seen), untargeted(torch.zeros(2).long()), seeds(), eot=1)(torch.rand(2, 1, SIDE, SIDE), ROWS)

    assert [steps for _, steps in seen] == [None]


def test_a_gradient_is_taken_of_as_many_points_as_the_target_s_batch():
    sizes = []

    class Model(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return LINEAR(x)

    target = replace(Target.plain(Model(), random=True), batch=3)
    bpda(target, untargeted(torch.zeros(2).long()), seeds(), eot=4)(torch.rand(2, 1, SIDE, SIDE), ROWS)

    assert sizes == [3, 3, 2]


def test_what_only_answers_has_no_gradient():
    opaque = Target.opaque(Target.plain(LINEAR).answer, random=False)

    with pytest.raises(ValueError, match="needs a target with a classifier"):
        bpda(opaque, untargeted(torch.zeros(2).long()), seeds(), eot=1)


def test_what_has_no_loop_has_no_iterates():
    with pytest.raises(ValueError, match="need an Active Defense"):
        iterates(Target.plain(LINEAR), untargeted(torch.zeros(2).long()), seeds(), eot=1, steps=2)


def test_the_loss_along_the_way_is_that_of_its_end(defense, batch):
    images, labels = batch
    goal, rows = untargeted(labels), torch.arange(4)

    found = iterates(Target.defended(defense), goal, NoiseSeeds(rows, SeedStream.ATTACK), eot=2, steps=2)(images, rows)

    ids = NoiseSeeds(rows, SeedStream.ATTACK).next(rows, 2)
    *_, last = trajectory(defense, 2)(images.repeat_interleave(2, 0), ids)
    end = white_box(defense.model, goal)(last, rows.repeat_interleave(2))
    torch.testing.assert_close(found.loss, end.loss.view(4, 2).mean(1))
    torch.testing.assert_close(found.right, end.right.view(4, 2).mean(1))


def test_a_sample_that_is_done_stays_where_it_is_on_the_trajectory(defense, batch):
    images, _ = batch
    losses = plain_losses(prefix(defense.model, "block1"))
    defense.delta = between(losses, defense.noised(images, ids=torch.arange(4)))

    points = list(trajectory(defense, STEPS)(images, torch.arange(4)))

    done = [losses(point) <= defense.delta for point in points[:-1]]
    assert any(bool(each.any()) for each in done)
    for before, after, stays in zip(points, points[1:], done, strict=False):
        assert torch.equal((after == before).flatten(1).all(1), stays)
