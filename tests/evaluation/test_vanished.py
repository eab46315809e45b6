"""Gradients that vanish make a weak attack and a high accuracy: the static evaluations see it, or see through it."""

import copy
import json

import pytest
import torch
from torch import nn

import fastdef
from fastdef.assets import ASSETS
from fastdef.attacks import GradientRecord, cross_entropy, margin
from fastdef.data import load_dataset
from fastdef.evaluation import Attack, evaluate, evaluate_strengths

IMAGES = 32


@pytest.fixture(scope="module")
def shipped():
    return fastdef.load(ASSETS / "smoothing.safetensors").model.eval()


@pytest.fixture(scope="module")
def fashion():
    return load_dataset("fashion-mnist", "test", root=ASSETS).take(IMAGES)


@pytest.fixture(scope="module")
def truth(shipped, fashion):
    return attacked(evaluate(shipped, fashion, attack=Attack(steps=10))).accuracy.value


def attacked(evaluation):
    return next(row for row in evaluation.rows if row.name == "attacked")


def times(model, factor):
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.fc.weight *= factor
        scaled.fc.bias *= factor
    return scaled


class Around(nn.Module):
    """A classifier behind something that it does to the image, or to its gradient."""

    def __init__(self, model, before):
        super().__init__()
        self.model, self.before = model, before

    def forward(self, x):
        return self.model(self.before(x))


def rounded(x):
    return (31 * x).round() / 31


class NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


@pytest.mark.parametrize("factor", [1000.0, 1e6, 1e-6])
def test_a_model_with_scaled_logits_has_the_accuracy_of_the_model(shipped, fashion, truth, factor):
    evaluation = evaluate(times(shipped, factor), fashion, attack=Attack(steps=10))

    assert attacked(evaluation).accuracy.value == pytest.approx(truth, abs=0.02)
    assert evaluation.refusals == []


def test_cross_entropy_alone_on_a_saturated_model_is_no_figure(shipped, fashion, truth):
    evaluation = evaluate(times(shipped, 1000.0), fashion, attack=Attack(losses=("cross_entropy",), steps=10))

    assert attacked(evaluation).accuracy.value > truth + 0.5
    assert "attacked: " in evaluation.refusals[0]
    assert evaluation.gradients["cross_entropy"].saturated > 0.5 * evaluation.gradients["cross_entropy"].count
    assert evaluation.to_json()["refusals"] == evaluation.refusals
    assert json.loads(json.dumps(evaluation.to_json()))["gradients"]["cross_entropy"]["saturated"] > 0.5


@pytest.mark.parametrize(("before", "kind"), [(rounded, "zero"), (NaNBackward.apply, "nan")])
def test_a_model_without_a_gradient_gets_no_figure(shipped, fashion, before, kind):
    evaluation = evaluate(Around(shipped, before).eval(), fashion, attack=Attack(steps=5))

    row = attacked(evaluation)
    assert row.vanished == row.accuracy.correct > 0.5 * IMAGES
    assert evaluation.refusals
    for shares in evaluation.gradients.values():
        assert getattr(shares, kind) == shares.count


def test_the_strengths_of_a_saturated_model_are_those_of_the_model(shipped, fashion):
    few, eps = fashion.take(16), (0.0, 8 / 255)
    saturated = evaluate_strengths(times(shipped, 1000.0), few, strengths=eps, steps=5)
    plain = evaluate_strengths(shipped, few, strengths=eps, steps=5)

    for found, true in zip(saturated.rows["model"], plain.rows["model"], strict=True):
        assert found.value == pytest.approx(true.value, abs=0.02)
    assert saturated.refusals == []


def test_the_strengths_of_a_model_without_a_gradient_are_no_figures(shipped, fashion):
    found = evaluate_strengths(
        Around(shipped, rounded).eval(), fashion.take(16), strengths=(0.0, 8 / 255), steps=2, layer="model.block1"
    )

    assert found.vanished["model"][0] == 0
    assert found.vanished["model"][1] == found.rows["model"][1].correct > 0
    assert "model, eps 8/255" in found.refusals[0]
    assert found.to_json()["refusals"] == found.refusals


def test_the_second_loss_attacks_what_stands_and_keeps_what_fell(shipped, fashion):
    images, labels = fashion.floats(0, 32), fashion.labels[:32]
    weak = {"eps": 2 / 255, "steps": 3}

    first = Attack(losses=("cross_entropy",), **weak)(shipped, images, labels)
    both = Attack(**weak).run(shipped, images, labels)

    with torch.no_grad():
        fell = shipped(first).argmax(1) != labels
        falls = shipped(both.images).argmax(1) != labels
    assert 0 < int(fell.sum()) < 32
    assert torch.equal(both.images[fell], first[fell])
    assert bool((falls | ~fell).all())
    assert both.gradients["margin"].count == 3 * int((~fell).sum())


def test_a_record_counts_what_cannot_be_followed():
    record = GradientRecord(4)
    loss = record.watched(cross_entropy)
    logits = torch.tensor([[100.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    gradient = torch.ones(4, 1, 2, 2)
    gradient[1] = 0
    gradient[2, 0, 0, 0] = torch.nan

    for step in range(4):
        loss(logits, torch.zeros(4, dtype=torch.int64))
        record.observe(gradient if step < 2 else torch.ones_like(gradient))

    assert record.counts.tolist() == [[4, 0, 0, 4], [4, 2, 0, 0], [4, 0, 2, 0], [4, 0, 0, 0]]
    assert record.vanished.tolist() == [True, True, True, False]
    assert record.shares().to_json() == {"count": 16, "zero": 2 / 16, "nan": 2 / 16, "saturated": 4 / 16}
    assert record.watched(margin) is margin
