import pytest
import torch

from fastdef.evaluation.adaptive.target import Answers, FixedBatch, Target
from tests.evaluation.adaptive.linear import LINEAR, SIDE, Linear


def pixels(count, seed=0):
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def colours(count):
    """As many pixels, in four channels."""
    return pixels(count).view(count, SIDE, SIDE // 2, SIDE // 2)


def ids(count):
    return torch.arange(count)


def test_a_plain_model_answers_in_no_steps_and_without_a_gradient():
    images = pixels(3).requires_grad_()

    found = Target.plain(LINEAR).answer(images, ids(3))

    assert torch.equal(found.logits, LINEAR(images).detach())
    assert not found.logits.requires_grad
    assert (found.steps.tolist(), found.steps.dtype) == ([0, 0, 0], torch.int64)
    assert (found.capped.tolist(), found.capped.dtype) == ([False, False, False], torch.bool)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(SIDE * SIDE)

    def forward(self, x):
        return self.norm(x.flatten(1))


def test_a_model_answers_in_eval_mode_whatever_mode_it_is_in():
    model = Normed().train()
    images = pixels(3)

    found = Target.plain(model).answer(images, ids(3))

    assert model.training
    assert model.norm.num_batches_tracked == 0
    torch.testing.assert_close(found.logits, images.flatten(1), rtol=1e-4, atol=1e-4)


def test_a_plain_target_has_a_classifier_and_nothing_before_it():
    target = Target.plain(LINEAR)

    assert target.classifier is LINEAR
    assert target.purify is target.defense is target.identity is None
    assert not target.random
    assert Target.plain(LINEAR, random=True).random


def test_a_target_is_random_only_if_it_says_so():
    assert not Target(lambda images, ids: None).random


def test_a_purified_target_answers_to_what_is_purified_by_image_and_id():
    images = pixels(2)
    target = Target.purified(LINEAR, lambda images, ids: images + ids.view(-1, 1, 1, 1), random=True)
    moved = images + ids(2).view(-1, 1, 1, 1)

    assert torch.equal(target.purify(images, ids(2), None), moved)
    assert torch.equal(target.answer(images, ids(2)).logits, LINEAR(moved))
    assert torch.equal(target.logits(images, ids(2), 1), LINEAR(moved))
    assert target.classifier is LINEAR
    assert target.random
    assert not Target.purified(LINEAR, lambda images, ids: images, random=False).random


def test_what_only_answers_has_nothing_else():
    answers = Answers(torch.rand(2, 4), ids(2), torch.zeros(2).bool())

    target = Target.opaque(lambda images, ids: answers, random=True, identity="a")

    assert target.logits(pixels(2), ids(2), 3) is answers.logits
    assert target.classifier is target.purify is target.defense is None
    assert (target.random, target.identity) == (True, "a")
    assert Target.opaque(lambda images, ids: answers, random=False).identity is None


def test_a_defended_target_tells_the_defense_s_answers_steps_and_cap(restless):
    images = pixels(3)
    target = Target.defended(restless)

    found = target.answer(images, ids(3))

    assert torch.equal(found.logits, restless.defend(images, ids=ids(3)).logits)
    assert found.steps.tolist() == [3, 3, 3]
    assert found.capped.tolist() == [True, True, True]
    assert target.random
    assert target.classifier is restless.model
    assert target.defense is restless


def test_a_defended_target_s_loop_can_be_cut(restless):
    images = pixels(3)
    target = Target.defended(restless)

    whole, one = (target.purify(images, ids(3), steps) for steps in (None, 1))

    assert torch.equal(whole, restless.smooth(images, ids=ids(3)).images)
    assert torch.equal(one, restless.smooth(images, ids=ids(3), budgets=torch.ones(3, dtype=torch.int64)).images)
    assert not torch.allclose(one, whole)
    with torch.no_grad():
        expected = restless.model(one)
    torch.testing.assert_close(target.logits(images, ids(3), 1), expected)
    assert not torch.allclose(expected, target.answer(images, ids(3)).logits)


@pytest.mark.parametrize("missing", ["classifier", "purify", "defense"])
def test_what_lacks_a_part_of_the_loop_is_not_cut(restless, missing):
    answers = Answers(torch.rand(2, 4), ids(2), torch.zeros(2).bool())
    parts = {"classifier": restless.model, "purify": lambda images, ids, steps: images, "defense": restless}

    target = Target(lambda images, ids: answers, **{**parts, missing: None})

    assert target.logits(pixels(2), ids(2), 1) is answers.logits


class Sized(torch.nn.Module):
    """A model that notes the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.linear, self.sizes, self.gradients = Linear(), [], []

    def forward(self, x):
        assert x.is_contiguous()
        self.sizes.append(len(x))
        self.gradients.append((torch.is_grad_enabled(), x.requires_grad))
        return self.linear(x)


@pytest.mark.parametrize(("count", "runs"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_fixed_batch_runs_one_size_only_and_answers_as_the_model(count, runs):
    model = Sized()
    images = colours(count)

    found = FixedBatch(model, 4)(images)

    assert model.sizes == [4] * runs
    torch.testing.assert_close(found, model.linear(images))


def test_a_fixed_batch_passes_the_gradient_of_the_images_and_of_them_alone():
    images = colours(3).requires_grad_()
    weights = torch.rand(3, 4)

    (found,) = torch.autograd.grad((FixedBatch(LINEAR, 8)(images) * weights).sum(), images)

    (expected,) = torch.autograd.grad((LINEAR(images) * weights).sum(), images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_fixed_batch_is_compiled_where_that_is_asked_for_and_for_one_size(monkeypatch, compiled):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append((model, options)) or model)

    FixedBatch(LINEAR, 4, compile=compiled)

    assert asked == [(LINEAR, {"dynamic": False})] * compiled


def test_a_fixed_batch_is_not_compiled_unless_asked(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)

    torch.testing.assert_close(FixedBatch(LINEAR, 4)(colours(1)), LINEAR(colours(1)))


def test_warming_runs_the_one_size_without_and_with_gradients_of_weights_and_of_images():
    model = Sized()

    FixedBatch(model, 4).warm(colours(2).requires_grad_())

    assert model.sizes == [4, 4, 4]
    assert model.gradients == [(False, False), (True, False), (True, True)]
