"""Accuracy over strengths, on classifiers that take no time."""

import json

import pytest
import torch

from fastdef.attacks import RATIOS, adaptive_pgd
from fastdef.data import Dataset
from fastdef.evaluation import (
    Accuracy,
    Attack,
    Strengths,
    accuracy,
    attacked_batches,
    evaluate_strengths,
    rounds,
    submodels,
)
from fastdef.evaluation.afa import _Batches
from fastdef.evaluation.shift import Shift
from fastdef.nn import branch, convert_to_afa, convert_to_multi_bn, fixed_fusing_weight, fusing_weights, tap
from tests.evaluation.tiny import Brighter, Small, Wavy, dataset

BRIGHT = dataset(*(0.5 + 0.01 * k for k in range(40))).images
PIXELS = torch.randint(0, 256, (12, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def centred(model):
    """No class leads on all images."""
    with torch.no_grad():
        model.fc.bias.sub_(model.eval()(PIXELS.float() / 255).mean(0))
    return model


def plain():
    torch.manual_seed(0)
    return centred(Small())


def branched():
    model, generator = convert_to_multi_bn(plain(), 3), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bn" in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return centred(model)


def fused(leaning=1.0):
    """Where ``leaning`` is large W0 depends much on the image."""
    model = convert_to_afa(branched(), hidden=8)
    with torch.no_grad():
        model.conv1.weight_generator.layers[-1].weight.mul_(leaning)
    return centred(model)


def data(model, pixels=PIXELS):
    """Images of which the model gets all right."""
    with torch.no_grad():
        labels = model(pixels.float() / 255).argmax(1)
    return Dataset(pixels, labels, tuple("abcd"), "made", "test")


def under(model, images, attack):
    """What stands of batches of five."""
    batches = attacked_batches(model, images, attack, batch_size=5)
    return accuracy(model, ((batch.attacked, batch.labels) for batch in batches))


def measured(*, vanished=(0, 0)):
    rows = {"model": [Accuracy(100, 100), Accuracy(50, 100)]}
    strongest, shifts = {"FGSM": Accuracy(60, 100)}, [Shift(None, [1.0], [2.0]), Shift((0.5, 0.1), [3.0], [4.0])]
    return Strengths((0.0, 8 / 255), 20, rows, strongest, "block1", shifts, {"model": list(vanished)})


def test_the_mean_is_that_over_the_strengths():
    assert measured().mean("model") == 0.75


@pytest.mark.parametrize(("vanished", "told"), [((0, 0), []), ((2, 2), []), ((3, 0), ["0"]), ((3, 3), ["0", "8"])])
def test_every_accuracy_of_which_too_many_images_stand_untested_is_told_by_its_part_and_eps(vanished, told):
    refusals = measured(vanished=vanished).refusals

    assert [refusal.split(":")[0] for refusal in refusals] == [f"model, eps {eps}/255" for eps in told]
    assert all(": 3 of 100 images" in refusal for refusal in refusals)


def test_a_report_has_every_part_and_eps_in_255ths():
    found = measured(vanished=(0, 3))

    assert json.loads(json.dumps(found.to_json())) == {
        "eps": [0, 8],
        "steps": 20,
        "rows": {"model": {"mean": 0.75, "by_eps": [Accuracy(100, 100).to_json(), Accuracy(50, 100).to_json()]}},
        "strongest": {"FGSM": Accuracy(60, 100).to_json()},
        "vanished": {"model": [0, 3]},
        "refusals": found.refusals,
        "layer": "block1",
        "shifts": [
            {"w1": None, "mean": [1.0], "variance": [2.0]},
            {"w1": [0.5, 0.1], "mean": [3.0], "variance": [4.0]},
        ],
    }


def test_the_strengths_are_the_paper_s_and_the_steps_twenty_if_none_are_given():
    found = evaluate_strengths(Brighter(), dataset(0.6, 0.53))

    assert found.to_json()["eps"] == [0, 1, 2, 4, 8]
    assert found.steps == 20
    assert found.layer == "block1"
    assert list(found.strongest) == ["FGSM", "C&W margin, PGD-20"]


@pytest.mark.parametrize("given", [{}, {"seed": 0}, {"seed": 3}])
def test_a_plain_model_stands_what_the_attacks_of_that_seed_leave(given):
    """The seed is 0 if none is given."""
    model, how = Wavy(), {"eps": 0.02, "seed": given.get("seed", 0)}
    waves = data(model, BRIGHT)

    found = evaluate_strengths(model, waves, strengths=(0.02, 0.0), steps=2, batch_size=5, **given)

    assert found.strengths == (0.02, 0.0)
    assert found.rows == {"model": [under(model, waves, Attack(steps=2, **how)), Accuracy(40, 40)]}
    assert found.strongest == {
        "FGSM": under(model, waves, Attack(steps=1, losses=("cross_entropy",), **how)),
        "C&W margin, PGD-2": under(model, waves, Attack(steps=2, losses=("margin",), **how)),
    }
    assert len({found.rows["model"][0], *found.strongest.values()}) == 3


def test_each_part_of_an_afa_model_is_attacked_by_itself():
    model = fused()
    images = data(model)

    found = evaluate_strengths(model, images, strengths=(0.0, 0.02), steps=3, layer="conv2", batch_size=5)

    parts = {"branch 0 (W0 = 1)": 1.0, "blend (W0 = 0.5)": 0.5, "branch K-1 (W0 = 0)": 0.0}
    assert list(found.rows) == ["AFA", *parts]
    assert found.rows["AFA"] == [Accuracy(12, 12), under(model, images, Attack(eps=0.02, steps=3))]
    for name, w0 in parts.items():
        with fixed_fusing_weight(model, w0):
            clean = accuracy(model, [(images.floats(0, 12), images.labels)])
            assert found.rows[name] == [clean, under(model, images, Attack(eps=0.02, steps=3))]
    assert len({row[0] for row in found.rows.values()}) == 4


def test_the_strongest_attacks_on_a_model_of_stage_one_are_on_its_first_branch():
    model = branched()
    with branch(model, 0):
        images = data(model)
        expected = under(model, images, Attack(eps=0.05, steps=1, losses=("cross_entropy",)))

    found = evaluate_strengths(model, images, strengths=(0.05,), steps=3, layer="conv2", batch_size=5)

    assert found.strongest["FGSM"] == expected
    assert 0 < expected.correct < 12


@pytest.mark.parametrize("seed", [0, 2])
def test_the_adaptive_attack_is_that_of_each_ratio_batch_by_batch(seed):
    model = fused(leaning=30.0)
    images = data(model)

    def stands(ratio):
        right = []
        for number, start in enumerate((0, 5, 10)):
            given, labels = images.floats(start, start + 5), images.labels[start : start + 5]
            how = {"eps": 0.01, "step": 0.01, "steps": 2, "ratio": ratio}
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            with torch.no_grad():
                right.append(model(adaptive_pgd(model, given, labels, generator=generator, **how)).argmax(1) == labels)
        return torch.cat(right)

    each = torch.stack([stands(ratio) for ratio in RATIOS])

    found = evaluate_strengths(
        model, images, strengths=(0.01,), steps=2, layer="conv2", batch_size=5, seed=seed
    ).strongest

    assert found["adaptive PGD, lowest of seven"] == Accuracy(int(each.sum(1).min()), 12)
    assert found["adaptive PGD, images that stand all seven"] == Accuracy(int(each.all(0).sum()), 12)
    assert int(each.all(0).sum()) < int(each.sum(1).min()) < int(each.sum(1).max())


@pytest.mark.parametrize("seed", [0, 3])
def test_every_batch_has_a_number_and_a_generator_that_no_other_batch_or_seed_has(seed):
    given = []

    def craft(model, images, labels, generator, batch):
        given.append((generator.initial_seed(), batch))
        return images, torch.zeros(len(images), dtype=torch.bool)

    _Batches(dataset(*[0.6] * 12), 5, seed, lambda images: None).right(Brighter(), craft)

    assert given == [(seed * 1_000_003 + number, seed * 1_000_003 + number) for number in range(3)]


@pytest.mark.parametrize("make", [plain, branched, fused])
def test_the_whole_alone_is_attacked_by_pgd_alone(make):
    model = make()

    found = evaluate_strengths(model, data(model), strengths=(0.0, 0.01), steps=1, layer="conv2", parts=False)

    assert list(found.rows) == list(found.vanished) == [next(iter(submodels(model)))]
    assert found.strongest == {}
    assert len(found.shifts) == 2


def test_a_model_of_stage_one_is_followed_on_its_first_branch():
    model = branched()
    images = data(model)

    found = evaluate_strengths(model, images, strengths=(0.0,), layer="conv2")

    with branch(model, 0), tap(model, "conv2") as tapped, torch.no_grad():
        model(images.floats(0, 12))
        mean = tapped.features.mean((0, 2, 3)).tolist()
    assert list(found.rows) == ["branch 0", "branch 1", "branch 2"]
    assert [shift.mean for shift in found.shifts] == [pytest.approx(mean, rel=1e-4)]


def test_the_layer_is_followed_on_the_whole_model_alone_a_strength_each():
    model = fused(leaning=100.0)
    images = data(model)

    found = evaluate_strengths(model, images, strengths=(0.0, 0.05), steps=1, layer="conv2", batch_size=5)

    with torch.no_grad():
        _, w0 = fusing_weights(model, images.floats(0, 12))
    assert found.layer == "conv2"
    assert [len(shift.mean) for shift in found.shifts] == [4, 4]
    assert found.shifts[0].w1[0] == pytest.approx(float(1 - w0.mean()), rel=1e-4)
    assert found.shifts[0].w1 != found.shifts[1].w1


def test_strengths_of_zero_alone_need_no_attack():
    model = plain()

    found = evaluate_strengths(model, data(model), strengths=(0.0,), layer="conv2")

    assert found.rows == {"model": [Accuracy(12, 12)]}
    assert found.vanished == {"model": [0]}
    assert found.strongest == {}


def test_images_answered_right_without_a_gradient_are_counted_by_strength():
    found = evaluate_strengths(Brighter(0.0), dataset(0.6, 0.7, labels=[0, 1]), strengths=(0.0, 0.1), steps=2)

    assert found.rows == {"model": [Accuracy(1, 2), Accuracy(1, 2)]}
    assert found.vanished == {"model": [0, 1]}


@pytest.mark.parametrize(
    ("make", "strengths", "times"),
    [
        (plain, (0.0,), 1),
        (plain, (0.0, 0.01), 4),
        (branched, (0.0, 0.01), 8),
        (fused, (0.0,), 4),
        (fused, (0.01,), 13),
    ],
)
def test_rounds_are_told_before_and_gone_through(make, strengths, times):
    model, told = make(), []

    evaluate_strengths(
        model, data(model), strengths=strengths, steps=1, layer="conv2", batch_size=5, progress=told.append
    )

    assert rounds(model, strengths=strengths) == times
    assert told == [5, 5, 2] * times


def test_rounds_are_those_of_the_paper_s_strengths_if_none_are_given():
    assert rounds(Brighter()) == 7


def test_batches_are_of_256_images_if_nothing_else_is_said():
    told = []

    evaluate_strengths(Brighter(), dataset(*[0.6] * 257), strengths=(0.0,), progress=told.append)

    assert told == [256, 1]


def test_a_model_in_training_is_judged_in_eval_mode_and_left_in_training():
    model = plain()
    images = data(model)
    model.train()

    found = evaluate_strengths(model, images, strengths=(0.0,), layer="conv2", batch_size=1)

    assert found.rows["model"] == [Accuracy(12, 12)]
    assert model.training


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_under_one_is_refused(size):
    with pytest.raises(ValueError, match=f"needs images and a batch size, got 2 and {size}"):
        evaluate_strengths(Brighter(), dataset(0.6, 0.7), batch_size=size)


def test_an_empty_data_set_is_refused():
    images = dataset(0.6)
    nothing = Dataset(images.images[:0], images.labels[:0], images.classes, "made", "test")

    with pytest.raises(ValueError, match="needs images and a batch size, got 0 and 256"):
        evaluate_strengths(Brighter(), nothing)


@pytest.mark.parametrize("strengths", [(), (0.1, -0.1)])
def test_strengths_that_are_none_or_negative_are_refused(strengths):
    with pytest.raises(ValueError, match="evaluate_strengths needs strengths from 0 up, got"):
        evaluate_strengths(Brighter(), dataset(0.6), strengths=strengths)
