"""Ways to fool an evaluation, and five broken defenses of the literature in miniature, at the smoke budget.

All of them are around or inside the shipped classifier, which within 8/255 answers none of these images right.
"""

import copy
from dataclasses import replace

import pytest
import torch

import fastdef
from fastdef.defense.noise import uniform_noise
from fastdef.evaluation.adaptive import Target, evaluate_adaptive
from fastdef.evaluation.adaptive.alignment import ALIGNED
from fastdef.evaluation.adaptive.budget import SCREEN, SMOKE
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.rows.bpda import ESTIMATED

EIGHT = replace(SMOKE, images=8, expensive_share=1.0, curve_eps=(), curve_iterations=())


def saturated(model):
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.fc.weight *= 1000
        scaled.fc.bias *= 1000
    return scaled


class MirroredBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flip(3)


class Mirrored(torch.nn.Module):
    """Right forward, wrong backward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(MirroredBackward.apply(x))


class EarlyExit(torch.nn.Module):
    """Looks again at smoothed copies for as long as the answer is unsure, and passes no gradient from one look on."""

    def __init__(self, model, sure=0.6, looks=2):
        super().__init__()
        self.model, self.sure, self.looks = model, sure, looks

    def forward(self, x):
        logits = self.model(x)
        for look in range(1, self.looks):
            unsure = (logits.detach().softmax(1).amax(1) < self.sure)[:, None]
            smoothed = torch.nn.functional.avg_pool2d(x.detach(), 3, 1, 1, count_include_pad=False)
            logits = torch.where(unsure, self.model(torch.lerp(x.detach(), smoothed, look / 10)), logits)
        return logits


def noise(images, ids):
    return images + uniform_noise(ids, torch.zeros_like(ids), images.shape[1:], seed=1, sigma=0.03)


BROKEN = {
    "rounding": lambda model: Target.purified(model, lambda images, ids: (31 * images).round() / 31, random=False),
    "saturation": lambda model: Target.plain(saturated(model)),
    "mirrored backward": lambda model: Target.plain(Mirrored(model).eval()),
    "randomness only": lambda model: Target.purified(model, noise, random=True),
    "early exit": lambda model: Target.plain(EarlyExit(model).eval()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_defense_is_driven_to_its_truth(shipped, fashion, name):
    results = evaluate_adaptive(BROKEN[name](shipped), fashion, budget=SMOKE)

    assert results.line(0, sanity.CLEAN).score.mean > 0.8
    assert results.headline.score.judgement <= 0.03
    assert results.headline.score.count in (8, 16)


class Shattered(torch.nn.Module):
    """The model, under waves of a thousandth that no answer hangs on and that every gradient is full of."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 1e-3 * torch.sin(3e5 * x))


MASKED = {"mirrored backward": BROKEN["mirrored backward"], "shattered": lambda m: Target.plain(Shattered(m).eval())}


@pytest.mark.slow
@pytest.mark.parametrize("name", MASKED)
def test_a_screen_of_a_minute_sees_masked_gradients(shipped, fashion, name):
    assert not evaluate_adaptive(MASKED[name](shipped), fashion, budget=SCREEN).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BROKEN if name not in MASKED])
def test_and_drives_what_has_gradients_down(shipped, fashion, name):
    results = evaluate_adaptive(BROKEN[name](shipped), fashion, budget=SCREEN)

    assert results.headline.score.judgement <= 0.1 or not results.passed


def test_a_classifier_whose_gradients_are_its_own_passes_the_screen(shipped, fashion):
    results = evaluate_adaptive(Target.plain(shipped), fashion, budget=SCREEN)

    assert results.passed
    assert {line.case.row for line in results.lines} == {0, 3, 6}
    assert results.headline.score.judgement == 0


def test_a_saturated_model_has_the_accuracy_of_the_model(shipped, fashion):
    results = evaluate_adaptive(Target.plain(saturated(shipped)), fashion, budget=EIGHT, rows=[0, 3])

    assert results.headline.score.judgement <= 0.02
    assert results.line(0, sanity.HUGE).score.mean == 0


def mirrored(model):
    """A purification that mirrors the image, before a classifier of mirrored images: BPDA's gradient is mirrored."""

    class OfMirrored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.flip(3))

    return Target.purified(OfMirrored().eval(), lambda images, ids: images.flip(3), random=False)


def test_a_mirrored_purification_is_seen_and_attacked_by_estimates(shipped, fashion):
    results = evaluate_adaptive(mirrored(shipped), fashion, budget=EIGHT, rows=[0, 3])

    assert results.alignment < ALIGNED
    assert not results.passed
    assert results.headline.case.name == ESTIMATED
    assert results.headline.score.judgement <= 0.05
    assert "estimated gradient signs attack without it" in next(
        check.detail for check in results.checks if check.name == "gradients are those of what is deployed"
    )


def test_where_the_gradient_is_true_nothing_is_estimated(shipped, fashion):
    budget = replace(EIGHT, images=4, iterations=2)

    results = evaluate_adaptive(Target.plain(shipped), fashion, budget=budget, rows=[3])

    assert results.alignment > ALIGNED
    assert results.line(3, ESTIMATED) is None
    assert results.to_json()["alignment"] == results.alignment


class Louder(torch.nn.Module):
    """The same weights by the same names, and another forward."""

    def __init__(self, model):
        super().__init__()
        self.__dict__.update(copy.deepcopy(model).__dict__)
        self.whole = (model,)

    def forward(self, x):
        return self.whole[0]((1.1 * x).clamp(0, 1))


def resumed(first, second, dataset, budget, folder):
    evaluate_adaptive(first, dataset, budget=budget, rows=[0], folder=folder)
    return evaluate_adaptive(second, dataset, budget=budget, rows=[0], folder=folder, resume=True)


def test_the_work_on_another_purification_is_not_resumed(model, dataset, tiny, tmp_path):
    first, second = (
        Target.purified(model, lambda images, ids, levels=levels: (levels * images).round() / levels, random=False)
        for levels in (31, 15)
    )

    with pytest.raises(ValueError, match="its answers are others now, though weights and settings agree"):
        resumed(first, second, dataset, tiny, tmp_path)


def test_the_work_on_another_forward_of_the_same_weights_is_not_resumed(model, dataset, tiny, tmp_path):
    with pytest.raises(ValueError, match="its answers are others now"):
        resumed(Target.plain(model), Target.plain(Louder(model).eval()), dataset, tiny, tmp_path)


def test_the_work_on_a_defense_that_does_not_clamp_is_not_resumed(model, dataset, tiny, tmp_path):
    options = {"beta": 3.0, "max_steps": 6, "delta": 1e-6, "compile": False}
    first, second = (Target.defended(fastdef.ActiveDefense(model, clamp=clamp, **options)) for clamp in (False, True))

    with pytest.raises(ValueError, match="--resume needs"):
        resumed(first, second, dataset, tiny, tmp_path)


def test_the_same_target_is_resumed_though_its_kernels_round_otherwise(model, dataset, tiny, tmp_path):
    class Rounding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) * (1 + 1e-6)

    first, second = (Target(Target.plain(m).answer, classifier=model) for m in (model, Rounding().eval()))

    assert resumed(first, second, dataset, tiny, tmp_path).line(0, sanity.CLEAN) is not None
