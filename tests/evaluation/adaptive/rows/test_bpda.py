"""Row 3: Auto-PGD on what is deployed."""

from dataclasses import replace

import pytest
import torch

from fastdef.attacks import untargeted
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.alignment import ALIGNED
from fastdef.evaluation.adaptive.bpda import iterates
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows import bpda
from fastdef.evaluation.adaptive.target import Answers
from tests.evaluation.adaptive.linear import (
    EPS,
    GUARDED,
    IMAGES,
    LEAST,
    LINEAR,
    OPAQUE,
    PLAIN,
    asked,
    counting,
    facts,
    left,
    planned,
)

LOSSES = {"APGD-CE": "cross-entropy", "C&W margin, APGD": "margin", "APGD-DLR, targeted": "targeted DLR"}


@pytest.mark.parametrize(
    ("target", "gradient", "answers", "eot"),
    [
        (PLAIN, "autograd", 1, 1),
        (GUARDED, "BPDA", 1, 1),
        (Target.purified(LINEAR, lambda images, ids: images, random=True), "BPDA", 7, 3),
    ],
)
def test_three_losses_attack_all_images_through_all_there_is(tiny, target, gradient, answers, eot):
    plan = planned(target, tiny, images=10)

    assert facts(bpda, plan) == {
        name: (10, answers, {"gradient": gradient, "loss": loss, "steps": None, "eot": eot, "iterations": 20})
        for name, loss in LOSSES.items()
    }
    assert counting(bpda, plan) == list(LOSSES)


@pytest.mark.parametrize(("depths", "deepest"), [((2, 4, 6), 6), ((6, 2), 6), ((4,), None)])
def test_every_loss_goes_through_every_length_of_the_loop_and_the_longest_on_fewer_images(
    defense, tiny, depths, deepest
):
    plan = planned(Target.defended(defense), tiny, depths=depths, images=10, averaged_steps=9)

    found = facts(bpda, plan)

    mean = found.pop("APGD-CE, mean gradient of 9 steps")
    assert mean == (6, 7, {"gradient": "BPDA, mean over the iterates", "steps": 9, "eot": 3, "iterations": 20})
    assert found == {
        f"{name} through {depth} steps": (
            6 if depth == deepest else 10,
            7,
            {"gradient": "BPDA", "loss": loss, "steps": depth, "eot": 3, "iterations": 20},
        )
        for depth in depths
        for name, loss in LOSSES.items()
    }


@pytest.mark.parametrize("classes", [3, 4, 5])
def test_the_loss_that_needs_four_classes_is_left_out_where_there_are_fewer(tiny, classes):
    plan = planned(PLAIN, tiny, classes=classes)

    reason = "its loss needs four classes, and there are 3"
    assert left(bpda, plan) == [(3, "APGD-DLR, targeted", reason)] * (classes < 4)
    assert [*facts(bpda, plan)] == [*LOSSES][: classes - 1]


def test_the_others_go_on_behind_a_loss_that_is_left_out(defense, tiny):
    found = facts(bpda, planned(Target.defended(defense), tiny, classes=3, depths=(2, 4)))

    assert [name for name in found if "steps" in name] == [
        "APGD-CE through 2 steps",
        "C&W margin, APGD through 2 steps",
        "APGD-CE through 4 steps",
        "C&W margin, APGD through 4 steps",
        "APGD-CE, mean gradient of 2 steps",
    ]


def test_what_has_no_gradient_is_not_attacked(tiny):
    plan = planned(OPAQUE, tiny)

    assert left(bpda, plan) == [(3, "BPDA", "no gradients")]
    assert facts(bpda, plan) == {}


@pytest.mark.parametrize(
    ("alignment", "estimated"), [(None, False), (0.0, True), (ALIGNED - 0.01, True), (ALIGNED, False), (1.0, False)]
)
def test_signs_are_estimated_where_the_gradient_is_another_s(tiny, alignment, estimated):
    plan = planned(GUARDED, tiny, images=10, alignment=alignment, estimates=99)

    found = facts(bpda, plan).get("estimated gradient signs")

    assert found == ((6, 1, {"queries": 99, "draws": 1}) if estimated else None)


def test_an_estimate_asks_the_same_few_draws_of_a_random_defense(tiny):
    target = Target.purified(LINEAR, lambda images, ids: images, random=True)

    found = facts(bpda, planned(target, tiny, images=10, alignment=0.0, estimates=99))

    assert found["estimated gradient signs"] == (6, 7, {"queries": 99, "draws": 3})


def case(target, tiny, name, **changes):
    return next(case for case in bpda.cases(planned(target, tiny, **changes)) if case.name == name)


def test_the_attacker_s_noise_is_asked_through_as_many_steps_and_draws_as_the_settings_say(
    defense, dataset, tiny, batch, monkeypatch
):
    seen, target = [], Target.defended(defense)

    def purify(images, ids, steps):
        seen.append((ids.tolist(), steps))
        return target.purify(images, ids, steps)

    noted = replace(target, purify=purify)
    batch = replace(batch, images=dataset.floats(0, IMAGES))
    (ask,) = asked(monkeypatch, case(noted, tiny, "APGD-CE through 4 steps", depths=(2, 4)), batch)

    ask(batch.images, batch.ids)

    assert seen == [(NoiseSeeds(batch.ids, SeedStream.ATTACK).next(batch.ids, 3).tolist(), 4)]


@pytest.mark.parametrize("targets", [1, 2, 3])
def test_the_likeliest_classes_are_aimed_at_one_after_another(tiny, batch, monkeypatch, targets):
    ranked = torch.tensor([1, 2, 3])[:targets]
    logits = LINEAR(batch.images)

    asks = asked(monkeypatch, case(PLAIN, tiny, "APGD-DLR, targeted", targets=targets), batch)

    scale = logits[:, 0] - (logits[:, 2] + logits[:, 3]) / 2
    expected = [-(logits[:, 0] - logits[:, aim]) / scale for aim in ranked.tolist()]
    for ask, wanted in zip(asks, expected, strict=True):
        torch.testing.assert_close(ask(batch.images, batch.ids).loss, wanted)


def test_the_likeliest_classes_are_read_off_the_attacker_s_first_draw(tiny, batch, monkeypatch):
    ids = []

    def purify(images, given):
        ids.append(given.tolist())
        return images

    target = Target.purified(LINEAR, purify, random=True)

    asked(monkeypatch, case(target, tiny, "APGD-DLR, targeted"), batch)

    assert ids == [NoiseSeeds(batch.ids, SeedStream.ATTACK).next(batch.ids, 1).tolist()]


def test_the_mean_gradient_is_that_of_its_own_length_and_draws(defense, dataset, tiny, batch, monkeypatch):
    target, batch = Target.defended(defense), replace(batch, images=dataset.floats(0, IMAGES))
    (ask,) = asked(monkeypatch, case(target, tiny, "APGD-CE, mean gradient of 4 steps", averaged_steps=4, eot=2), batch)

    found = ask(batch.images, batch.ids)

    draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)
    expected = iterates(target, untargeted(batch.labels), draws, eot=2, steps=4)(batch.images, batch.ids)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.gradient, expected.gradient)


def hunted(monkeypatch, target, tiny, batch, **changes):
    """What an estimate hands to SignHunter, and that it hands on what comes back."""
    noted, result = [], torch.rand_like(batch.images)

    def hunter(*given, **options):
        noted.append((given, options))
        return result

    monkeypatch.setattr(bpda, "sign_hunter", hunter)
    (points,) = case(target, tiny, "estimated gradient signs", alignment=0.0, **changes).craft(batch)
    assert points is result
    return noted[0]


def test_what_is_estimated_is_the_mean_lead_of_the_likeliest_other_class(monkeypatch, tiny, batch):
    table = torch.tensor([[5.0, 1.0, 3.0], [2.0, 8.0, 0.0], [4.0, 4.0, 7.0], [9.0, -4.0, -3.0], [1.0, 0.0, 2.0]])
    seen = []

    def answer(images, ids):
        seen.append((images.flatten(1)[:, 0].tolist(), ids.tolist()))
        draw = torch.arange(len(ids)) % 2
        logits = table.repeat_interleave(2, 0) + torch.stack([draw * 0.0, draw * 0.0, draw * 2.0], 1)
        nothing = torch.zeros(len(ids), dtype=torch.int64)
        return Answers(logits, nothing, nothing.bool())

    labels = torch.tensor([0, 1, 2, 0, 1])
    target = Target(answer, classifier=LINEAR, random=True)
    given = replace(batch, labels=labels, images=torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 4, 4) / 9)
    (value, images), options = hunted(monkeypatch, target, tiny, given, estimates=77, eot=2)

    assert images is given.images
    assert (options["eps"], options["queries"]) == (EPS, 77)
    assert options["generator"].initial_seed() == batch.seed
    torch.testing.assert_close(value(images), torch.tensor([-1.0, -6.0, -4.0, -11.0, 3.0]))
    value(images)
    ids = NoiseSeeds(batch.ids, SeedStream.ATTACK).next(batch.ids, 2).tolist()
    assert [asked_ids for _, asked_ids in seen] == [ids, ids]  # the same draws in every call
    torch.testing.assert_close(torch.tensor(seen[0][0]), given.images[:, 0, 0, 0].repeat_interleave(2))


def test_an_estimate_turns_a_linear_model_where_it_can_be_turned(tiny, batch):
    class Masked(torch.nn.Module):
        def forward(self, x):
            return LINEAR(x.detach() + 0 * x)  # a gradient of zeros

    plan = replace(planned(Target.plain(Masked().eval()), tiny, alignment=0.0, estimates=100), eps=1.05 * LEAST)
    made = next(case for case in bpda.cases(plan) if case.name == bpda.ESTIMATED)

    (points,) = made.craft(batch)

    assert not bool((LINEAR(points).argmax(1) == 0).any())
    assert float((points - batch.images).abs().max()) <= 1.05 * LEAST + 1e-6
