"""Row 1: AutoAttack on the classifier alone, and on the parts of an AFA model."""

import copy
from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.rows import static
from fastdef.evaluation.adaptive.target import FixedBatch
from fastdef.evaluation.afa import submodels
from fastdef.nn import convert_to_afa, convert_to_multi_bn
from tests.evaluation.adaptive.linear import GUARDED, IMAGES, LINEAR, PLAIN, counting, facts, planned


@pytest.fixture
def afa(model):
    torch.manual_seed(0)
    fused = convert_to_afa(convert_to_multi_bn(copy.deepcopy(model), 2)).eval()
    for module in fused.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # the branches are copies of one another
    return fused


def test_it_attacks_all_images_once_with_the_budget_s_effort(tiny):
    effort = replace(tiny.autoattack, iterations=30, targets=4, queries=50)

    found = facts(static, planned(GUARDED, tiny, autoattack=effort, images=12))

    assert found == {static.STATIC: (12, 1, {"iterations": 30, "targets": 4, "queries": 50})}


@pytest.mark.parametrize(("target", "expected"), [(PLAIN, ["AutoAttack standard"]), (GUARDED, [])])
def test_it_is_an_attack_on_what_is_deployed_where_that_is_the_model_alone(tiny, target, expected):
    assert counting(static, planned(target, tiny)) == expected


def test_its_images_are_kept_for_the_transfer_row(tiny):
    (case,) = static.cases(planned(GUARDED, tiny))

    assert case.keeps


def test_who_answers_is_the_model_without_its_defense(tiny, batch):
    target = Target.purified(LINEAR, lambda images, ids: images + 1, random=False)
    (case,) = static.cases(planned(target, tiny))

    found = case.evaluate(batch, batch.images, 1, SeedStream.EVALUATION)

    assert found.right.all()
    assert not (target.answer(batch.images, batch.ids).logits.argmax(1) == 0).any()


@pytest.mark.parametrize(("size", "images", "expected"), [(4, 9, 4), (9, 4, 4)])
def test_a_model_is_compiled_for_batches_that_are_no_larger_than_there_are_images(
    tiny, monkeypatch, size, images, expected
):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(model) or model)

    (case,) = static.cases(planned(GUARDED, tiny, compile=True, batch=size, images=images))

    assert isinstance(case.craft.run, FixedBatch)
    assert case.craft.run.size == expected
    assert compiled == [LINEAR]


def test_a_model_that_is_not_compiled_is_run_as_it_is(tiny):
    (case,) = static.cases(planned(GUARDED, tiny, compile=False))

    assert case.craft.run is case.craft.model is LINEAR


@pytest.mark.parametrize("compile", [False, True])
def test_of_an_afa_model_every_part_is_attacked_too_in_its_own_view(afa, tiny, dataset, monkeypatch, compile):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    images = dataset.floats(0, 2)

    whole, *parts = static.cases(planned(Target.plain(afa), tiny, compile=compile))

    views = {name: view for name, view in submodels(afa).items() if name != "AFA"}
    assert whole.name == "AutoAttack standard"
    assert [case.name for case in parts] == [f"AutoAttack standard, {name}" for name in views]
    assert [case.counts for case in (whole, *parts)] == [True, False, False, False]
    answers = []
    for case, view in zip(parts, views.values(), strict=True):
        assert case.craft.run is afa  # which a compiled one would not know the view of
        with view():
            expected = afa(images)
        with case.view():
            answers.append(afa(images))
        assert torch.equal(answers[-1], expected)
    assert len({tuple(logits.flatten().tolist()) for logits in answers}) == 3


def test_what_is_attacked_is_run_in_the_form_that_is_fast_and_with_the_effort_of_the_settings(tiny, batch):
    asked = []

    class Run(torch.nn.Module):
        def forward(self, x):
            asked.append(len(x))
            return LINEAR(x)

    (case,) = static.cases(planned(PLAIN, tiny))
    made = replace(case.craft, run=Run().eval(), iterations=1, targets=1, queries=1)

    (points,) = made(batch)

    assert asked
    assert points.shape == (IMAGES, 1, 4, 4)
