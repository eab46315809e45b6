"""Row 5: what the papers attacked their defenses with, and attacks on the loop."""

import copy
from dataclasses import replace

import pytest
import torch

from fastdef.attacks import RATIOS
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.budget import DECADES
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows import papers
from fastdef.nn import convert_to_afa, convert_to_multi_bn, prefix
from fastdef.ops import smoothing_loss
from tests.evaluation.adaptive.linear import IMAGES, OPAQUE, PLAIN, asked, counting, facts, left, planned

WEIGHTED = {f"CE {'+' if sign > 0 else '-'} 10^{power:g} max(L_F, delta)": sign * 10**power
            for sign in (-1, 1) for power in DECADES}  # fmt: skip
LOOP = {"exit early": (1.0, -1.0), "slow down": (1.0, 1.0), "slow down at all costs": (0.0, 1.0)}


def test_of_active_defense_every_weight_of_the_paper_is_tried_and_the_loop_attacked(defense, tiny):
    plan = planned(Target.defended(defense), tiny, images=10, depths=(2, 4, 6))

    way = {"steps": 4, "eot": 3, "iterations": 20}
    assert facts(papers, plan) == {
        **{name: (10, 7, {"weight": weight, "iterations": 20}) for name, weight in WEIGHTED.items()},
        "exit early": (10, 7, {"ce": 1.0, "smooth": -1.0, **way}),
        "slow down": (6, 7, {"ce": 1.0, "smooth": 1.0, **way}),
        "slow down at all costs": (6, 7, {"ce": 0.0, "smooth": 1.0, **way}),
    }
    assert counting(papers, plan) == [*WEIGHTED, *LOOP]


def test_of_an_afa_model_every_ratio_of_the_paper_is_tried(model, tiny):
    afa = convert_to_afa(convert_to_multi_bn(copy.deepcopy(model), 2)).eval()
    plan = planned(Target.plain(afa), tiny, images=10)

    assert facts(papers, plan) == {
        f"CE and BCE(W0), {ratio:g} to 1": (10, 1, {"ratio": ratio, "steps": 20}) for ratio in RATIOS
    }
    assert len(counting(papers, plan)) == 7


@pytest.mark.parametrize("target", [PLAIN, OPAQUE])
def test_of_another_model_there_is_nothing_to_attack(tiny, target):
    plan = planned(target, tiny)

    assert left(papers, plan) == [(5, "the papers' adaptive attacks", "neither Active Defense nor AFA")]
    assert facts(papers, plan) == {}


@pytest.fixture
def noted(defense, dataset, batch):
    """A defended target that notes its purifications, and a batch of which two images have another label."""
    seen, target = [], Target.defended(defense)

    def purify(images, ids, steps):
        seen.append((ids.tolist(), steps))
        return target.purify(images, ids, steps)

    images = dataset.floats(0, IMAGES)
    with torch.no_grad():
        labels = defense.model(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 10
    return seen, replace(target, purify=purify), replace(batch, images=images, labels=labels)


@pytest.mark.parametrize("name", LOOP)
def test_an_attack_on_the_loop_raises_cross_entropy_and_l_f_over_delta(defense, noted, tiny, monkeypatch, name):
    seen, target, batch = noted
    (ce, smooth), rows = LOOP[name], batch.ids
    case = next(case for case in papers.cases(planned(target, tiny, eot=2)) if case.name == name)
    (ask,) = asked(monkeypatch, case, batch)

    found = ask(batch.images, rows)

    draws = NoiseSeeds(batch.ids, SeedStream.ATTACK)
    noisy = defense.noised(batch.images.repeat_interleave(2, 0), ids=draws.next(rows, 2))
    expected = smooth * smoothing_loss(prefix(defense.model, defense.layer)(noisy)).view(-1, 2).mean(1) / defense.delta
    right = torch.ones(IMAGES)
    if ce:
        ids = draws.next(rows, 2)
        assert seen == [(ids.tolist(), 2)]
        logits = defense.model(Target.defended(defense).purify(batch.images.repeat_interleave(2, 0), ids, 2))
        labels = batch.labels.repeat_interleave(2)
        value = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        expected = expected + ce * value.view(-1, 2).mean(1)
        if name == "exit early":
            right = (logits.argmax(1) == labels).view(-1, 2).float().mean(1)
            assert 0 < right.mean() < 1
    else:
        assert seen == []  # no answer is wanted, and none is asked for
    torch.testing.assert_close(found.loss, expected)
    assert found.right.tolist() == right.tolist()  # what is to run long stays however it is answered


def test_the_joint_loss_is_that_of_the_rows_that_still_stand(defense, noted, tiny, monkeypatch):
    _, target, batch = noted
    case = next(case for case in papers.cases(planned(target, tiny)) if case.name == "CE + 10^0.5 max(L_F, delta)")
    (ask,) = asked(monkeypatch, case, batch)
    rows = torch.tensor([1, 3])

    whole, some = ask(batch.images, batch.ids), ask(batch.images[rows], rows)

    torch.testing.assert_close(some.loss, whole.loss[rows])
    torch.testing.assert_close(some.gradient, whole.gradient[rows])
    assert some.right.tolist() == [1, 1]
