"""The planted examples tell a true gradient from a spoilt one, and chance does not find them."""

import pytest
import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.alignment import ALIGNED, alignment
from fastdef.evaluation.adaptive.attack_case import Batch, Plan
from fastdef.evaluation.adaptive.budget import SMOKE
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.rows.planted import plant, planted, random_corner

EPS, IMAGES = 8 / 255, 16


class Spoilt(torch.autograd.Function):
    """The identity, whose backward is another function of the gradient."""

    @staticmethod
    def forward(ctx, x, spoil):
        ctx.spoil = spoil
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.spoil(gradient), None


class Behind(torch.nn.Module):
    """A classifier whose gradient is spoilt on its way to the image."""

    def __init__(self, model, spoil):
        super().__init__()
        self.model, self.spoil = model, spoil

    def forward(self, x):
        return self.model(Spoilt.apply(x, self.spoil))


SPOILS = {
    "noise": lambda gradient: torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)),
    "mirrored": lambda gradient: gradient.flip(3),
    "negated": lambda gradient: -gradient,
    "zero": torch.zeros_like,
}


def plan(target):
    return Plan(target, target.classifier, SMOKE, EPS, IMAGES, 10)


@pytest.fixture(scope="module")
def batch(fashion):
    return Batch(fashion.floats(0, IMAGES), fashion.labels[:IMAGES], torch.arange(IMAGES), 3, lambda key: None)


def missed(target, batch):
    case = planted(plan(target))
    (points,) = case.craft(batch)
    return case.evaluate(batch, points, 1, SeedStream.EVALUATION).right[:, 0]


def test_a_true_gradient_finds_more_than_nine_in_ten(shipped, batch):
    found = missed(Target.plain(shipped), batch)

    assert len(found) >= 0.8 * IMAGES
    assert float(found.float().mean()) < 0.1


@pytest.mark.parametrize("name", SPOILS)
def test_a_spoilt_gradient_does_not_find_them_and_is_not_the_pipeline_s(shipped, batch, name):
    target = Target.plain(Behind(shipped, SPOILS[name]).eval())

    assert float(missed(target, batch).float().mean()) > 0.1
    assert alignment(plan(target), batch.images[:4], batch.labels[:4], seed=0) < ALIGNED


def test_random_search_with_the_attack_s_budget_finds_fewer_than_one_in_ten(shipped, batch):
    target = Target.plain(shipped)
    readout, generator = plant(plan(target), batch), torch.Generator().manual_seed(9)
    rows, found = torch.arange(IMAGES), torch.zeros(IMAGES, dtype=torch.bool)

    for _ in range(SMOKE.iterations + 1):
        points = random_corner(batch.images, EPS, generator)
        found |= readout(target.answer(points, batch.ids).logits, rows) > 0

    assert int(found.sum()) < 0.1 * IMAGES
    assert bool((readout(target.answer(readout.planted, batch.ids).logits, rows) > 0).sum() >= 0.8 * IMAGES)


@pytest.mark.parametrize(
    ("name", "purify"),
    [
        ("nothing", lambda images, ids: images),
        ("rounding", lambda images, ids: (31 * images).round() / 31),
    ],
)
def test_bpda_is_the_gradient_of_what_it_may_take_for_the_identity(shipped, batch, name, purify):
    target = Target.purified(shipped, purify, random=False)

    assert alignment(plan(target), batch.images[:4], batch.labels[:4], seed=0) > ALIGNED


def test_bpda_is_not_the_gradient_of_a_purification_that_mirrors(shipped, batch):
    target = Target.purified(shipped, lambda images, ids: images.flip(3), random=False)

    assert alignment(plan(target), batch.images[:4], batch.labels[:4], seed=0) < ALIGNED
