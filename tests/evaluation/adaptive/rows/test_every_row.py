"""What holds of every case of every row."""

import copy

import pytest
import torch

from fastdef.evaluation.adaptive import Target, attack_case
from fastdef.evaluation.adaptive.attack_case import AttackCase, Batch, NotRun, Plan
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.rows.rand import Rand
from fastdef.evaluation.adaptive.rows.static import Standard
from fastdef.evaluation.adaptive.suite import ROWS
from fastdef.nn import convert_to_afa, convert_to_multi_bn
from tests.evaluation.adaptive.linear import CLASSES, EPS, GUARDED, IMAGES, LINEAR, OPAQUE, PLAIN, SIDE, planned

KINDS = ["plain", "random", "guarded", "opaque", "defended", "fused"]


@pytest.fixture(params=KINDS)
def plan(request, tiny, defense, model):
    targets = {
        "plain": lambda: PLAIN,
        "random": lambda: Target.plain(LINEAR, random=True),
        "guarded": lambda: GUARDED,
        "opaque": lambda: OPAQUE,
        "defended": lambda: Target.defended(defense),
        "fused": lambda: Target.plain(convert_to_afa(convert_to_multi_bn(copy.deepcopy(model), 2)).eval()),
    }
    return planned(targets[request.param](), tiny, surrogate=LINEAR, alignment=0.0)


def test_it_bears_its_row_s_number(plan):
    for number, row in enumerate(ROWS):
        assert {case.row for case in row.cases(plan)} <= {number}


def test_its_key_and_its_name_are_its_own(plan):
    cases = [case for row in ROWS for case in row.cases(plan) if isinstance(case, AttackCase)]

    assert len({case.key for case in cases}) == len(cases)
    assert len({case.name for case in cases}) == len(cases)


def test_only_the_checks_of_row_0_have_another_radius(plan):
    others = {sanity.CLEAN, sanity.HUGE, sanity.eps_name(4)}
    for row in ROWS:
        for case in row.cases(plan):
            assert isinstance(case, NotRun) or case.eps == EPS or case.name in others


def test_what_an_attack_is_said_to_be_is_its_settings_and_no_tensors(plan):
    for row in ROWS:
        for case in row.cases(plan):
            if isinstance(case, AttackCase):
                said = ", ".join(f"{name}={value!r}" for name, value in case.craft.settings.items())
                assert repr(case.craft) == f"{type(case.craft).__name__}({said})"
                assert not any(isinstance(value, (torch.Tensor, torch.nn.Module)) for value in case.craft.settings)


@pytest.mark.parametrize("plan", ["random", "defended"], indirect=True)
def test_its_search_has_the_iterations_of_the_settings_and_the_radius_of_the_report(plan, dataset, monkeypatch):
    searched = []
    monkeypatch.setattr(attack_case, "search", lambda asks, images, **how: searched.append(how) or images)
    side = SIDE if plan.model is LINEAR else 12
    images = dataset.floats(0, 2)[:, :, :side, :side]
    batch = Batch(images, torch.zeros(2, dtype=torch.int64), torch.arange(2), 7, lambda key: images)

    cases = [case for row in ROWS for case in row.cases(plan) if isinstance(case, AttackCase)]
    for case in cases:
        if "iterations" in case.craft.settings and not isinstance(case.craft, (Standard, Rand)):
            case.craft(batch)
            (how,) = searched
            searched.clear()
            assert (how["eps"], how["iterations"]) == (case.eps, case.craft.settings["iterations"])
            assert how["generator"].initial_seed() == batch.seed


def test_whose_images_are_taken_keeps_them_and_comes_first(plan):
    seen = {}
    for row in ROWS:
        for case in row.cases(plan):
            if isinstance(case, AttackCase):
                assert case.needs is None or seen[case.needs]
                seen[case.key] = case.keeps


def test_what_only_answers_is_asked_by_the_black_boxes_and_is_attacked_by_nothing_else(tiny):
    plan = Plan(OPAQUE, None, tiny, EPS, IMAGES, CLASSES)

    made = [(case.row, case.name) for row in ROWS for case in row.cases(plan) if isinstance(case, AttackCase)]
    left = [(case.row, case.reason) for row in ROWS for case in row.cases(plan) if isinstance(case, NotRun)]

    assert made == [(0, sanity.CLEAN), (0, sanity.NOISE), (6, "Square"), (6, "RayS")]
    assert left == [
        (0, "gradients are needed, and this target only answers"),
        (0, "gradients are needed, and this target only answers"),
        (1, "gradients are needed, and this target only answers"),
        (2, "no independent model was given"),
        (3, "no gradients"),
        (4, "there is no Active Defense to unroll"),
        (5, "neither Active Defense nor AFA"),
        (7, "nothing is random"),
        (8, "no gradients"),
    ]
