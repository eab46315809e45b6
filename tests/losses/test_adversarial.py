"""The recipes against their published formulas, computed here in plain Python numbers."""

import math

import pytest
import torch

from fastdef.losses import IAT, MART, PGDAT, RECIPES, TRADES

Z = [[2.0, -1.0, 0.5], [0.1, 0.2, -0.3], [-4.0, 6.0, 1.0]]
ATTACKED = [[0.5, 1.5, 0.0], [0.3, -0.2, 0.4], [-1.0, 2.0, 3.0]]
LABELS = [0, 1, 1]


def softmax(z):
    exponentials = [math.exp(v) for v in z]
    return [e / sum(exponentials) for e in exponentials]


def ce(z, y):
    return -math.log(softmax(z)[y])


def kl(z, attacked):
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(softmax(z), softmax(attacked), strict=True))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def both(dtype=torch.float64):
    return torch.tensor(Z, dtype=dtype), torch.tensor(ATTACKED, dtype=dtype), torch.tensor(LABELS)


def test_pgd_at_is_the_cross_entropy_of_the_attacked():
    _, attacked, labels = both()

    assert PGDAT().outer((attacked,), labels).item() == pytest.approx(mean(map(ce, ATTACKED, LABELS)), abs=1e-9)


def test_trades_is_clean_cross_entropy_and_six_times_the_mean_divergence():
    z, attacked, labels = both()

    expected = mean(map(ce, Z, LABELS)) + 6 * mean(map(kl, Z, ATTACKED))
    assert expected == pytest.approx(4.920739732942, abs=1e-11)  # in decimal arithmetic of 40 digits
    assert TRADES().outer((z, attacked), labels).item() == pytest.approx(expected, abs=1e-6)
    assert TRADES().inner(attacked, labels, z).tolist() == pytest.approx(list(map(kl, Z, ATTACKED)), abs=1e-9)


def test_mart_is_boosted_cross_entropy_and_the_divergence_where_the_clean_answer_is_unsure():
    z, attacked, labels = both()

    boosted, unsure = [], []
    for clean, other, y in zip(Z, ATTACKED, LABELS, strict=True):
        p, q = softmax(clean), softmax(other)
        runner_up = max(q[c] for c in range(3) if c != y)
        boosted.append(ce(other, y) - math.log(1.0001 - runner_up + 1e-12))
        divergence = sum(a * (math.log(a) - math.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        unsure.append(divergence * (1.0000001 - p[y]))
    expected = mean(boosted) + 5 * mean(unsure)
    assert expected == pytest.approx(2.787885560252, abs=1e-11)  # in decimal arithmetic of 40 digits
    assert MART().outer((z, attacked), labels).item() == pytest.approx(expected, abs=1e-6)
    assert MART(6.0).outer((z, attacked), labels).item() == pytest.approx(mean(boosted) + 6 * mean(unsure), abs=1e-6)


def test_iat_is_the_mean_of_two_mixup_losses_each_with_its_own_ratio_and_partners():
    z, attacked, labels = both()
    ratios, partners = torch.tensor([[0.3] * 3, [0.8] * 3], dtype=torch.float64), torch.tensor([[2, 0, 1], [1, 2, 0]])

    def mixed(logits, ratio, order):
        pairs = zip(logits, LABELS, order, strict=True)
        return mean(ratio * ce(row, y) + (1 - ratio) * ce(row, LABELS[partner]) for row, y, partner in pairs)

    expected = (mixed(Z, 0.3, [2, 0, 1]) + mixed(ATTACKED, 0.8, [1, 2, 0])) / 2
    assert IAT().outer((z, attacked), labels, ratios, partners, labels[partners]).item() == pytest.approx(
        expected, abs=1e-9
    )


def test_iat_mixes_clean_images_with_clean_ones_and_attacked_with_attacked():
    images, attacked = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    images[1] = 0.5

    ratios, partners = torch.tensor([[0.25] * 2, [0.5] * 2]), torch.tensor([[1, 0], [1, 0]])
    clean, other = IAT().inputs(images, attacked, ratios, partners, partners)

    torch.testing.assert_close(clean.flatten(), torch.tensor([0.375, 0.125]))
    torch.testing.assert_close(other, attacked)


@pytest.mark.parametrize("name", RECIPES)
def test_half_precision_logits_are_judged_in_float32(name):
    z, attacked, labels = both(torch.bfloat16)
    recipe = RECIPES[name]()
    draws = [draw[0] for draw in recipe.draw(1, labels, torch.Generator().manual_seed(0))]

    loss = recipe.outer((z, attacked)[-recipe.segments :], labels, *draws)

    assert loss.dtype == torch.float32
    wide = recipe.outer(tuple(v.float() for v in (z, attacked)[-recipe.segments :]), labels, *draws)
    torch.testing.assert_close(loss, wide)


# PGD-AT and IAT: anywhere in the ball; TRADES and MART: a thousandth around the image.
@pytest.mark.parametrize(("name", "reach"), [("pgd-at", 0.1), ("iat", 0.1), ("trades", 0.006), ("mart", 0.006)])
def test_attacks_start_where_the_recipe_says(name, reach):
    images = torch.full((50, 1, 8, 8), 0.5)

    start = RECIPES[name]().start(images, torch.full((50, 1, 1, 1), 0.1), torch.Generator().manual_seed(0))

    for side in (1, -1):
        assert 0.5 * reach < (side * (start - images)).max() <= reach


# The table of the papers' code: steps, and step size in 255ths at eps 8.
@pytest.mark.parametrize(
    ("name", "steps", "step"), [("pgd-at", 10, 2), ("trades", 10, 1.785), ("mart", 10, 1.785), ("iat", 7, 2)]
)
def test_steps_are_the_published_ones(name, steps, step):
    assert RECIPES[name].steps == steps
    assert RECIPES[name].step * 8 == pytest.approx(step)


@pytest.mark.parametrize("name", RECIPES)
def test_fewer_steps_go_as_far_in_all_and_one_as_far_as_fast_training_does(name):
    recipe = RECIPES[name]()

    few = recipe.with_steps(4)

    assert few.steps * few.step == pytest.approx(recipe.steps * recipe.step)
    assert (recipe.with_steps(1).steps, recipe.with_steps(1).step) == (1, 1.25)
    assert recipe.with_steps(20).step == pytest.approx(recipe.steps * recipe.step / 20)
    assert vars(recipe.with_steps(recipe.steps)) == vars(recipe)  # a run that is resumed is the same run
    with pytest.raises(ValueError, match="one step or more, got 0"):
        recipe.with_steps(0)


def test_every_branch_of_iat_has_ratios_and_partners_of_its_own():
    ratios, partners, labels = RECIPES["iat"]().draw(3, torch.arange(6), torch.Generator().manual_seed(0))

    assert ratios.shape == partners.shape == labels.shape == (3, 2, 6)
    assert len(ratios.flatten().unique()) == 6
    assert torch.equal(labels, partners)
    assert len({tuple(order.tolist()) for order in partners.flatten(0, 1)}) == 6
