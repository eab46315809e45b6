"""Row 2: images attacked on another model."""

import torch

from fastdef.attacks import apgd, mifgsm, pgd
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.attack_case import key_of
from fastdef.evaluation.adaptive.rows import static, transfer
from tests.evaluation.adaptive.linear import EPS, GUARDED, LINEAR, PLAIN, counting, facts, left, planned

ON_MODEL = ["PGD on the model without the defense", "APGD-CE on the same", "AutoAttack on the same"]
ON_SURROGATE = ["PGD on the surrogate", "MI-FGSM on the surrogate", "APGD-CE on the surrogate"]


def test_all_images_are_attacked_with_the_steps_that_the_settings_say(tiny):
    found = facts(transfer, planned(GUARDED, tiny, surrogate=LINEAR, images=12))

    pgd_, apgd_ = {"attack": "PGD", "steps": 20}, {"attack": "APGD-CE", "steps": 20}
    settings = [pgd_, apgd_, {"key": key_of(1, static.STATIC)}, pgd_, {"attack": "MI-FGSM", "steps": 10}, apgd_]
    expected = zip(ON_MODEL + ON_SURROGATE, settings, strict=True)
    assert found == {name: (12, 1, each) for name, each in expected}


def test_auto_pgd_takes_the_budget_s_iterations(tiny):
    found = facts(transfer, planned(GUARDED, tiny, surrogate=LINEAR, iterations=33))

    assert {name for name, (_, _, settings) in found.items() if settings.get("steps") == 33} == {
        "APGD-CE on the same",
        "APGD-CE on the surrogate",
    }


def test_a_random_defense_answers_as_often_as_the_budget_says(tiny):
    target = Target.purified(LINEAR, lambda images, ids: images, random=True)

    found = facts(transfer, planned(target, tiny))

    assert {answers for _, answers, _ in found.values()} == {7}


def test_all_of_it_is_an_attack_on_what_is_deployed(tiny):
    assert counting(transfer, planned(GUARDED, tiny, surrogate=LINEAR)) == ON_MODEL + ON_SURROGATE


def test_autoattack_s_images_are_row_1_s(tiny):
    cases = {case.name: case for case in transfer.cases(planned(GUARDED, tiny, surrogate=LINEAR))}

    assert {name: case.needs for name, case in cases.items() if case.needs} == {
        "AutoAttack on the same": key_of(1, static.STATIC)
    }


def test_the_model_is_no_other_target_where_nothing_stands_before_it(tiny):
    assert [*facts(transfer, planned(PLAIN, tiny, surrogate=LINEAR))] == ON_SURROGATE


def test_without_a_surrogate_its_attacks_are_not_run(tiny):
    plan = planned(GUARDED, tiny)

    assert [*facts(transfer, plan)] == ON_MODEL
    assert left(transfer, plan) == [(2, "a surrogate's images", "no independent model was given")]


class Wavy(torch.nn.Module):
    """A model whose best points lie inside the ball, so that the size of a step shows."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return LINEAR(0.5 + self.sign * torch.sin(80 * x))


def test_each_is_the_library_s_attack_on_the_other_model(tiny, batch):
    model, other = Wavy(1).eval(), Wavy(-1).eval()
    target = Target.purified(model, lambda images, ids: images, random=False)
    cases = {case.name: case for case in transfer.cases(planned(target, tiny, surrogate=other))}
    where = {"images": batch.images, "labels": batch.labels, "eps": EPS}

    made = [cases[name].craft(batch) for name in (*ON_MODEL[:2], *ON_SURROGATE)]

    expected = []
    for attacked, attacks in ((model, "PA"), (other, "PMA")):
        run = {
            "P": lambda on=attacked: pgd(on, **where, step=EPS / 4, steps=20, generator=batch.generator()),
            "M": lambda on=attacked: mifgsm(on, **where, step=EPS / 10, steps=10),
            "A": lambda on=attacked: apgd(on, **where, iterations=20, generator=batch.generator()),
        }
        expected += [run[attack]() for attack in attacks]
    for (points,), wanted in zip(made, expected, strict=True):
        assert torch.equal(points, wanted)
    assert len({tuple(points.flatten().tolist()) for points in expected}) == len(made)
