"""Every row as a claim: where the best attack is known, the row reaches it; or it is the call that it stands for."""

import copy
from dataclasses import replace

import pytest
import torch

from fastdef.attacks import RATIOS, QueryResult, adaptive_pgd, step_size
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, Plan
from fastdef.evaluation.adaptive.budget import DECADES
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows import blackbox, bpda, later, papers, rand, sanity, static, transfer, unrolled
from fastdef.nn import convert_to_afa, convert_to_multi_bn, prefix
from fastdef.ops import smoothing_loss
from tests.evaluation.adaptive.linear import GUARDED, IMAGES, LEAST, LINEAR, PLAIN, SIDE, asked, cases

ROWS = [
    *((static, PLAIN, name) for name in ["AutoAttack standard"]),
    *((transfer, GUARDED, name) for name in ["PGD on the model without the defense", "APGD-CE on the same"]),
    *((transfer, GUARDED, f"{name} on the surrogate") for name in ["PGD", "MI-FGSM", "APGD-CE"]),
    *((bpda, GUARDED, name) for name in bpda.NAMES.values()),
    *((bpda, PLAIN, name) for name in bpda.NAMES.values()),
    *((later, target, "probability margin, APGD") for target in (GUARDED, PLAIN)),
    *((blackbox, PLAIN, name) for name in ["Square", "RayS"]),
    *((sanity, PLAIN, name) for name in ["curve: iterations 40"]),
]


@pytest.mark.parametrize(("row", "target", "name"), ROWS)
def test_an_attack_turns_a_linear_model_where_it_can_be_turned_and_nowhere_else(row, target, name, tiny, batch):
    changes = {"curve_iterations": (40,)} if row is sanity else {}
    reach = 2.5 if name == "Square" else 1.05  # its squares do not fit the weights

    for factor, stands in ((reach, 0), (0.95, IMAGES)):
        case = cases(row, target, tiny, eps=factor * LEAST, surrogate=LINEAR, **changes)[name]
        points = [*case.craft(batch)]
        right = torch.stack([target.answer(made, batch.ids).logits.argmax(1) == 0 for made in points]).all(0)

        assert int(right.sum()) == stands
        assert all(float((made - batch.images).abs().max()) <= factor * LEAST + 1e-6 for made in points)


def test_autoattack_s_images_are_what_the_transfer_row_evaluates(tiny, batch):
    case = cases(transfer, GUARDED, tiny, eps=LEAST)["AutoAttack on the same"]
    kept = torch.rand(IMAGES, 1, SIDE, SIDE)
    asked = []

    (points,) = case.craft(replace(batch, kept=lambda key: asked.append(key) or kept))

    assert torch.equal(points, kept)
    assert asked == [case.needs]


def test_the_losses_of_row_3_are_three(tiny, batch, monkeypatch):
    """What each of them raises is its own loss, at the image itself."""
    logits = LINEAR(batch.images)
    expected = {
        "APGD-CE": torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none"),
        "C&W margin, APGD": -(logits[:, 0] - logits[:, 1] + 50),
        "APGD-DLR, targeted": -(logits[:, 0] - logits[:, 1]) / (logits[:, 0] - (logits[:, 2] + logits[:, 3]) / 2),
    }

    for name, case in cases(bpda, GUARDED, tiny, eps=LEAST).items():
        (ask,) = asked(monkeypatch, case, batch)
        torch.testing.assert_close(ask(batch.images, torch.arange(IMAGES)).loss, expected[name])


@pytest.fixture
def defended(defense, dataset):
    images = dataset.floats(0, IMAGES)
    with torch.no_grad():
        labels = defense.model(images).argmax(1)
    return Batch(images, labels, torch.arange(IMAGES), 3, lambda key: images)


def of_defense(row, defense, tiny, **changes):
    target = Target.defended(defense)
    plan = Plan(target, defense.model, replace(tiny, images=IMAGES, batch=IMAGES, **changes), 8 / 255, IMAGES, 10)
    return {case.name: case for case in row.cases(plan) if isinstance(case, AttackCase)}


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("power", DECADES)
def test_the_paper_s_adaptive_attack_raises_cross_entropy_and_lambda_l_f(
    defense, defended, tiny, monkeypatch, sign, power
):
    case = of_defense(papers, defense, tiny)[f"CE {'+-'[sign < 0]} 10^{power:g} max(L_F, delta)"]
    (ask,) = asked(monkeypatch, case, defended)
    x = defended.images.clone().requires_grad_()
    ce = torch.nn.functional.cross_entropy(defense.model(x), defended.labels, reduction="none")
    expected = ce + sign * 10**power * smoothing_loss(prefix(defense.model, defense.layer)(x)).clamp_min(defense.delta)
    (gradient,) = torch.autograd.grad(expected.sum(), x)

    found = ask(defended.images, torch.arange(IMAGES))

    torch.testing.assert_close(found.loss, expected.detach())
    torch.testing.assert_close(found.gradient, gradient)
    assert bool((found.right == 1).all())  # the undefended model's answers end nothing


@pytest.mark.parametrize("name", papers.ON_THE_LOOP)
def test_an_attack_on_the_loop_raises_what_it_says_and_follows_its_gradient(defense, defended, tiny, monkeypatch, name):
    ce, smooth = papers.ON_THE_LOOP[name]
    case, rows = of_defense(papers, defense, tiny, eot=2)[name], torch.arange(IMAGES)
    (ask,) = asked(monkeypatch, case, defended)
    ids = NoiseSeeds(defended.ids, SeedStream.ATTACK)
    draws = [ids.next(rows, 2) for _ in range(2)]
    x = defended.images.repeat_interleave(2, 0).requires_grad_()
    roughness = smoothing_loss(prefix(defense.model, defense.layer)(defense.noised(x, ids=draws[0]) + x - x.detach()))
    (gradient,) = torch.autograd.grad(roughness.sum() / defense.delta / 2, x)
    expected = smooth * gradient.unflatten(0, (-1, 2)).sum(1)
    if ce:
        through = Target.defended(defense).purify(x.detach(), draws[1], 2).requires_grad_()
        value = torch.nn.functional.cross_entropy(
            defense.model(through), defended.labels.repeat_interleave(2), reduction="sum"
        )
        expected = expected + ce * torch.autograd.grad(value / 2, through)[0].unflatten(0, (-1, 2)).sum(1)

    found = ask(defended.images, rows)

    torch.testing.assert_close(found.gradient, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_attack_on_w0_is_the_library_s_with_its_ratio(model, dataset, tiny, ratio):
    afa = convert_to_afa(convert_to_multi_bn(copy.deepcopy(model), 2)).eval()
    images, labels = dataset.floats(0, IMAGES), dataset.labels[:IMAGES]
    batch = Batch(images, labels, torch.arange(IMAGES), 3, lambda key: images)
    plan = Plan(Target.plain(afa), afa, tiny, 8 / 255, IMAGES, 10)
    case = next(case for case in papers.cases(plan) if case.name == f"CE and BCE(W0), {ratio:g} to 1")

    (found,) = case.craft(batch)

    how = {"eps": 8 / 255, "step": step_size(8 / 255, 20), "steps": 20, "generator": batch.generator()}
    assert torch.equal(found, adaptive_pgd(afa, images, labels, ratio=ratio, **how))
    assert (found - images).abs().max() > 7 / 255


@pytest.mark.parametrize(("row", "name"), [(unrolled, "APGD-CE, smoothed unroll of 2 steps")])
def test_the_unrolled_attack_hands_back_what_its_search_found(defense, defended, tiny, monkeypatch, row, name):
    case = of_defense(row, defense, tiny)[name]

    (ask,) = asked(monkeypatch, case, defended)

    found = ask(defended.images, torch.arange(IMAGES))
    assert isinstance(found, QueryResult)
    assert found.gradient.abs().amax((1, 2, 3)).min() > 0
    (points,) = case.craft(defended)
    assert float((points - defended.images).abs().amax((1, 2, 3)).min()) > 7 / 255


def test_the_mean_gradient_is_taken_along_the_loop(defense, defended, tiny, monkeypatch):
    case = of_defense(bpda, defense, tiny)["APGD-CE, mean gradient of 2 steps"]

    (ask,) = asked(monkeypatch, case, defended)

    assert ask(defended.images, torch.arange(IMAGES)).gradient.abs().max() > 0


class Noisy(torch.nn.Module):
    """Linear, with noise in every call that does not hide which way is up."""

    def forward(self, x):
        return LINEAR(x + 0.2 * LEAST * torch.randn_like(x))


def test_autoattack_rand_hands_back_every_candidate_and_turns_a_linear_model(tiny, batch):
    effort = replace(tiny.autoattack, iterations=20, eot=2)
    target = Target.plain(Noisy().eval(), random=True)
    made = cases(rand, target, tiny, eps=2 * LEAST, autoattack=effort)

    candidates = made[rand.PUBLISHED].craft(batch)[0].unflatten(0, (-1, IMAGES))

    answers = torch.stack([LINEAR(points).argmax(1) == 0 for points in candidates])
    assert len(candidates) >= 2
    assert not answers.all(0).any()
    again = made[rand.ANEW].craft(replace(batch, kept=lambda key: candidates.flatten(0, 1)))
    assert all(torch.equal(one, other) for one, other in zip(again, candidates, strict=True))


def test_noise_fills_the_ball_and_clean_is_the_image(tiny, batch):
    made = cases(sanity, PLAIN, tiny, eps=0.1)

    (noise,), (clean,) = made[sanity.NOISE].craft(batch), made[sanity.CLEAN].craft(batch)

    assert torch.equal(clean, batch.images)
    assert 0.09 < float((noise - batch.images).abs().max()) <= 0.1
