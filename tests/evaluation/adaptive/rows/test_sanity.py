"""Row 0: what must hold for the other rows to mean anything."""

from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.attack_case import AttackCase
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows import sanity
from tests.evaluation.adaptive.linear import EPS, IMAGES, LINEAR, OPAQUE, PLAIN, asked, counting, facts, left, planned

RANDOM = Target.purified(LINEAR, lambda images, ids: images, random=True)
CURVES = {"curve_eps": (2, 12.5), "curve_iterations": (1, 30)}


def test_each_check_has_its_images_answers_radius_and_length(tiny):
    plan = planned(RANDOM, tiny, images=10, **CURVES)

    ascent = {"gradient": "BPDA", "losses": ("cross-entropy",), "steps": None, "eot": 3, "eps": EPS, "iterations": 20}
    huge = {**ascent, "losses": ("cross-entropy", "margin"), "eps": 64 / 255}
    planted = {"gradient": "BPDA", "steps": None, "eot": 3, "iterations": 20}
    assert facts(sanity, plan) == {
        "clean": (10, 8, {}),
        "random noise": (10, 7, {}),
        "eps 64/255": (6, 7, huge),
        "curve: eps 2/255": (6, 7, {**ascent, "eps": 2 / 255}),
        "curve: eps 12.5/255": (6, 7, {**ascent, "eps": 12.5 / 255}),
        "curve: iterations 1": (6, 7, {**ascent, "iterations": 1}),
        "curve: iterations 30": (6, 7, {**ascent, "iterations": 30}),
        "planted examples missed": (6, 8, planted),
    }


def test_the_radius_of_the_report_is_the_attack_s(tiny):
    made = {case.name: case for case in sanity.cases(planned(RANDOM, tiny, **CURVES))}

    assert made[sanity.CLEAN].eps == 0
    assert made[sanity.NOISE].eps == made[sanity.PLANTED].eps == EPS
    attacks = [case for case in made.values() if isinstance(case.craft, sanity.Ascent)]
    assert [case.eps for case in attacks] == [case.craft.eps for case in attacks]


def test_no_check_is_the_headline(tiny):
    assert counting(sanity, planned(RANDOM, tiny)) == []
    assert counting(sanity, planned(PLAIN, tiny)) == []


def test_what_only_answers_is_asked_for_clean_images_and_noise(tiny):
    plan = planned(OPAQUE, tiny)

    reason = "gradients are needed, and this target only answers"
    assert left(sanity, plan) == [(0, "eps 64/255", reason), (0, "planted examples missed", reason)]
    assert [*facts(sanity, plan)] == ["clean", "random noise"]


@pytest.mark.parametrize(("value", "low", "high"), [(0.5, 0.4, 0.6), (0.0, 0.0, 0.1), (1.0, 0.9, 1.0)])
def test_noise_is_anywhere_in_the_ball_and_in_the_range_of_an_image(tiny, batch, value, low, high):
    images = torch.full((IMAGES, 1, 40, 40), value)
    (noise,) = sanity.Noise(replace(planned(PLAIN, tiny), eps=0.1))(replace(batch, images=images))

    assert low <= float(noise.min()) < low + 0.01
    assert high - 0.01 < float(noise.max()) <= high
    if value == 0.5:
        assert float(noise.mean()) == pytest.approx(0.5, abs=0.005)
        assert float(noise.std()) == pytest.approx(0.2 / 12**0.5, abs=0.005)  # uniform


def test_noise_is_the_batch_s_own(tiny, batch):
    made = [sanity.Noise(planned(PLAIN, tiny))(each)[0] for each in (batch, batch, replace(batch, seed=8))]

    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_an_ascent_goes_by_one_loss_after_another_with_the_attacker_s_noise(tiny, batch, monkeypatch):
    seen = []

    def purify(images, ids):
        seen.append(ids)
        return images

    plan = planned(Target.purified(LINEAR, purify, random=True), tiny)
    case = next(case for case in sanity.cases(plan) if case.name == sanity.HUGE)

    asks = asked(monkeypatch, case, batch)
    losses = [ask(batch.images, batch.ids).loss for ask in asks]

    logits = LINEAR(batch.images)
    torch.testing.assert_close(losses[0], torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none"))
    torch.testing.assert_close(losses[1], logits[:, 1] - logits[:, 0] - 50)
    draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)
    assert [ids.tolist() for ids in seen] == [draws.next(batch.ids, 3).tolist() for _ in range(2)]


def test_an_ascent_reaches_its_own_radius(tiny, batch):
    for case in sanity.cases(planned(PLAIN, tiny, **CURVES)):
        if isinstance(case, AttackCase) and isinstance(case.craft, sanity.Ascent):
            (points,) = case.craft(replace(batch, labels=torch.ones_like(batch.labels)))  # wrong from the start

            assert 0 < float((points - batch.images).abs().max()) <= case.eps + 1e-6
