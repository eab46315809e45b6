"""Row 7: AutoAttack for random defenses, counted in two ways."""

from dataclasses import replace

import pytest
import torch

from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.attack_case import key_of
from fastdef.evaluation.adaptive.noise_seeds import NoiseSeeds, SeedStream
from fastdef.evaluation.adaptive.rows import rand
from tests.evaluation.adaptive.linear import EPS, IMAGES, LEAST, LINEAR, OPAQUE, PLAIN, counting, facts, left, planned

RANDOM = Target.purified(LINEAR, lambda images, ids: images, random=True)


def test_the_same_run_is_counted_as_published_and_answered_anew(tiny):
    effort = replace(tiny.autoattack, iterations=30, eot=4)
    plan = planned(RANDOM, tiny, autoattack=effort, images=10)

    settings = {"iterations": 30, "eot": 4, "losses": "APGD-CE, APGD-DLR"}
    assert facts(rand, plan) == {
        "AutoAttack rand, as published": (6, 1, settings),
        "AutoAttack rand, re-evaluated": (6, 8, {"key": key_of(7, rand.PUBLISHED)}),
    }
    assert counting(rand, plan) == ["AutoAttack rand, re-evaluated"]
    published, anew = rand.cases(plan)
    assert (published.keeps, anew.keeps) == (True, False)
    assert (published.needs, anew.needs) == (None, published.key)


@pytest.mark.parametrize(
    ("target", "classes", "reason"),
    [
        (PLAIN, 4, "nothing is random"),
        (OPAQUE, 4, "nothing is random"),
        (replace(OPAQUE, random=True), 4, "gradients are needed, and this target only answers"),
        (RANDOM, 2, "its DLR loss needs three classes, and there are 2"),
    ],
)
def test_where_it_is_not_run_it_says_why(tiny, target, classes, reason):
    plan = planned(target, tiny, classes=classes)

    assert left(rand, plan) == [(7, "AutoAttack rand", reason)]
    assert facts(rand, plan) == {}


def test_three_classes_are_enough(tiny):
    assert len(facts(rand, planned(RANDOM, tiny, classes=3))) == 2


def test_as_published_one_answer_to_an_attacked_image_decides_it(tiny, batch):
    effort = replace(tiny.autoattack, iterations=3, eot=1)
    batch = replace(batch, labels=torch.tensor([0, 1, 0, 1, 0]))  # of which two are answered wrong from the start

    for eps, stands in ((0.5 * LEAST, [True, False, True, False, True]), (2 * LEAST, [False] * IMAGES)):
        published, _ = rand.cases(replace(planned(RANDOM, tiny, autoattack=effort), eps=eps))
        (points,) = published.craft(batch)
        found = published.evaluate(batch, points[:IMAGES], 1, SeedStream.EVALUATION)

        assert found.right.tolist() == [[each] for each in stands]
        assert found.answered.all()
        assert not found.capped.any()
        assert found.steps.tolist() == [[0]] * IMAGES
        assert found.steps.dtype == torch.int32
        assert found.loss.tolist() == [0] * IMAGES


def test_the_attack_is_made_with_the_draws_and_iterations_of_its_settings(tiny, batch):
    calls = {}
    for iterations, eot in ((2, 1), (4, 1), (2, 3)):
        seen = []

        def purify(images, ids, seen=seen):
            seen.append(len(images))
            return images

        target = Target.purified(LINEAR, purify, random=True)
        effort = replace(tiny.autoattack, iterations=iterations, eot=eot)
        case = next(iter(rand.cases(replace(planned(target, tiny, autoattack=effort), eps=0.5 * LEAST))))
        case.craft(batch)
        calls[iterations, eot] = len(seen)

    assert calls[4, 1] > calls[2, 1]
    assert calls[2, 3] > calls[2, 1]


class Shifted:
    """A purification that changes images, notes its ids and steps, and whose own gradient is another's."""

    def __init__(self):
        self.seen = []

    def __call__(self, images, ids, steps):
        self.seen.append((ids.tolist(), steps))
        return (images * 0.5).detach()


def test_what_it_differentiates_answers_as_the_target_does_and_has_the_gradient_of_the_model_alone():
    purify, rows = Shifted(), torch.arange(3)
    target = replace(RANDOM, purify=purify)
    through = rand.Differentiable(target, NoiseSeeds(rows + 10, SeedStream.ATTACK), 3)
    images = torch.rand(3, 1, 4, 4, requires_grad=True)

    logits = through(images)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)

    torch.testing.assert_close(logits, LINEAR(images * 0.5))
    torch.testing.assert_close(gradient, LINEAR.weight.view(1, 1, 4, 4).expand(3, 1, 4, 4))


def test_every_call_draws_anew_and_more_images_than_there_are_go_round():
    purify, rows = Shifted(), torch.arange(3)
    through = rand.Differentiable(replace(RANDOM, purify=purify), NoiseSeeds(rows + 10, SeedStream.ATTACK), 3)

    for count in (3, 2, 7):
        through(torch.rand(count, 1, 4, 4))

    draws = NoiseSeeds(rows + 10, SeedStream.ATTACK)
    expected = [(draws.next(torch.arange(count) % 3, 1).tolist(), None) for count in (3, 2, 7)]
    assert purify.seen == expected


def test_what_is_not_purified_is_the_model_and_what_only_answers_is_nothing():
    images, draws = torch.rand(2, 1, 4, 4), NoiseSeeds(torch.arange(2), SeedStream.ATTACK)

    torch.testing.assert_close(rand.Differentiable(PLAIN, draws, 2)(images), LINEAR(images))
    with pytest.raises(ValueError, match="needs a target with a classifier"):
        rand.Differentiable(OPAQUE, draws, 2)(images)


def test_whose_run_is_counted_is_the_last_batch_s(tiny, batch):
    published, _ = rand.cases(replace(planned(RANDOM, tiny), eps=EPS))

    published.craft(batch)
    published.craft(replace(batch, seed=8))

    assert [*published.craft.counted] == [8]
