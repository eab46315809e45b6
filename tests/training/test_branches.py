"""Stage I: all branches in one batch against Algorithm 1 as written, and against each recipe alone."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from fastdef.losses import PGDAT, RECIPES, TRADES
from fastdef.nn import branch, build, convert_to_multi_bn, parse_architecture
from fastdef.training import STRENGTHS, Branches, SequentialBranches

XI = [0.0, 4 / 255, 8 / 255]


def network(branches=3, dtype=torch.float64):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1)).to(dtype)
    model(torch.rand(8, 1, 12, 12, dtype=dtype))  # running statistics that are not (0, 1)
    return convert_to_multi_bn(model, branches)


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 1, 12, 12, generator=generator, dtype=dtype), torch.arange(4)


def step(method):
    """Figures, gradient and statistics of one step."""
    return step_on(method, *method.prepare(*batch(), seed=7))


def step_on(method, *prepared):
    method.training_mode()
    loss, logged = method.loss(*prepared)
    loss.backward()
    return logged, torch.cat([w.grad.flatten() for w in method.model.parameters()]), dict(method.model.named_buffers())


@pytest.mark.parametrize("name", RECIPES)
def test_one_batch_gives_the_gradient_of_one_branch_after_the_other(name):
    together = Branches(network(), RECIPES[name](), XI)
    in_turn = SequentialBranches(copy.deepcopy(together.model), RECIPES[name](), XI)

    logged, gradient, statistics = step(together)
    expected_logged, expected, expected_statistics = step(in_turn)

    assert (gradient - expected).norm() < 1e-10 * expected.norm()  # promised: 1e-5
    torch.testing.assert_close(logged, expected_logged)
    torch.testing.assert_close(statistics, expected_statistics)


@pytest.mark.parametrize("kind", [Branches, SequentialBranches])
@pytest.mark.parametrize("name", RECIPES)
def test_crafting_leaves_model_and_statistics_bitwise_as_they_were(name, kind):
    method = kind(network(), RECIPES[name](), XI)
    before = copy.deepcopy(method.model.state_dict())

    method.prepare(*batch(), seed=0)

    assert all(torch.equal(value, before[key]) for key, value in method.model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in method.model.parameters())
    assert method.model.training


def test_each_strength_is_attacked_through_its_branch_within_its_ball():
    method = Branches(network(), PGDAT(), XI)
    with torch.no_grad():  # branches that answer differently
        method.model.bn1.weight[1] *= -1
    images, labels = batch()

    segments = method.prepare(images, labels, seed=0)[0].chunk(3)

    assert torch.equal(segments[0], images)
    method.model.eval()
    for k in (1, 2):
        assert (segments[k] - images).abs().max() <= XI[k] + 1e-12
        assert segments[k].min() >= 0
        assert segments[k].max() <= 1
        raised = {}
        for through in (1, 2):
            with torch.no_grad(), branch(method.model, through):
                losses = [cross_entropy(method.model(x), labels) for x in (segments[k], images)]
            raised[through] = losses[0] - losses[1]
        assert raised[k] > max(0, raised[3 - k])


def test_a_start_is_inside_the_ball_and_the_images_range():
    class Unmoved(TRADES):
        steps = 0

    eps = 0.5 / 255  # two deviations of the start's noise
    images, labels = batch()
    images[0] = 0.0

    start = Branches(network(2), Unmoved(), [0.0, eps]).prepare(images, labels, seed=0)[0][-len(images) :]

    assert 0 < (start - images).abs().max() <= eps + 1e-12
    assert start.min() >= 0


def test_one_branch_is_the_published_method_on_a_plain_model():
    method = Branches(network(1), TRADES(), [8 / 255])
    plain = build(parse_architecture("wrn-10-1", in_channels=1)).double()
    plain.load_state_dict(
        {k: v[0] if v.ndim and k.split(".")[-2].startswith("bn") else v for k, v in method.model.state_dict().items()}
    )
    images, labels = batch()

    inputs, _ = method.prepare(images, labels, seed=0)
    _, gradient, statistics = step_on(method, inputs, labels)

    # As the authors' code has it: two forwards, each with the statistics of its own batch.
    clean, attacked = inputs.chunk(2)
    z, other = plain(clean), plain(attacked)
    divergence = kl_div(log_softmax(other, 1), z.softmax(1), reduction="sum") / len(labels)
    (cross_entropy(z, labels) + 6.0 * divergence).backward()
    assert torch.equal(clean, images)
    torch.testing.assert_close(gradient, torch.cat([weight.grad.flatten() for weight in plain.parameters()]))
    for name, value in plain.named_buffers():
        torch.testing.assert_close(statistics[name][0], value)


def test_strength_0_alone_is_standard_training():
    method = Branches(network(1), PGDAT(), [0.0])
    images, labels = batch()

    prepared = method.prepare(images, labels, seed=0)

    assert torch.equal(prepared[0], images)
    assert torch.equal(prepared[1], labels)
    logged, _, _ = step_on(method, *prepared)
    assert list(logged) == ["clean_loss"]


def test_the_seed_decides_a_step_and_nothing_else_does():
    method = Branches(network(), RECIPES["iat"](), XI)

    first, again, other = (method.prepare(*batch(), seed=seed) for seed in (3, 3, 4))

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_branches_are_those_of_the_paper():
    assert STRENGTHS[5] == (0, 1, 2, 4, 8)
    assert {len(xi) for xi in STRENGTHS.values()} == set(STRENGTHS)


@pytest.mark.parametrize(
    ("strengths", "told"), [([], "strengths from 0 up"), ([-0.1], "strengths from 0 up"), ([0.0] * 4, "0 to 2")]
)
def test_strengths_that_do_not_fit_are_refused(strengths, told):
    with pytest.raises(ValueError, match=told):
        Branches(network(), PGDAT(), strengths)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd-at", "trades"])
def test_compiled_is_the_same_step_without_recompilation(name):
    torch.compiler.reset()
    eager = Branches(network(), RECIPES[name](), XI)
    compiled = Branches(copy.deepcopy(eager.model), RECIPES[name](), XI, compile=True)
    _, expected, _ = step(eager)
    compiled.prepare(*batch(), seed=0)

    with torch.compiler.set_stance("fail_on_recompile"):
        _, gradient, _ = step(compiled)

    assert (gradient - expected).norm() < 1e-10 * expected.norm()
