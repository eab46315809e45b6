import json

import pytest
import torch

from fastdef.data import Dataset
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from fastdef.evaluation.adaptive.probe import check_probe, probe
from fastdef.evaluation.adaptive.target import Answers, Target
from tests.evaluation.adaptive.linear import LINEAR, PLAIN, SIDE

NUMBERS = 4


@pytest.fixture(scope="module")
def images():
    pixels = torch.randint(0, 256, (6, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels[1], pixels[2] = 0, 255
    return Dataset(pixels, torch.arange(6) % 4, tuple("abcd"), "made", "test")


def opaque(answer, *, random=False):
    """A target that answers with a function of images and ids."""

    def answers(images, ids):
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return Answers(answer(images, ids), nothing, nothing.bool())

    return Target.opaque(answers, random=random)


def test_a_target_is_known_by_four_numbers_of_each_answer_to_four_images_and_to_four_with_noise(images):
    asked = []
    target = opaque(lambda images, ids: asked.append((images, ids)) or images.flatten(1))

    found = probe(target, None, images)

    assert set(found) == {"answers"}
    assert len(found["answers"]) == 8 * NUMBERS
    (seen, ids), again = asked
    assert torch.equal(seen, again[0])
    assert torch.equal(seen[:4], images.floats(0, 4))
    assert torch.equal(ids, noise_seeds(torch.arange(8), range(1), SeedStream.PROBE))
    assert torch.equal(ids, again[1])
    change = seen[4:] - seen[:4]
    assert 0.8 * 16 / 255 < change.max() <= 16 / 255 + 1e-6
    assert -16 / 255 - 1e-6 <= change.min() < -0.8 * 16 / 255
    assert 0 <= seen.min() <= seen.max() <= 1


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_are_all_asked_for(images, count):
    found = probe(PLAIN, None, images.take(count))

    assert len(found["answers"]) == 2 * count * NUMBERS


def test_answers_purified_images_classifier_and_surrogate_are_known(images):
    target = Target.purified(LINEAR, lambda images, ids: images / 2, random=False)

    found = probe(target, LINEAR, images)

    assert set(found) == {"answers", "purified", "classifier", "surrogate"}
    assert found["surrogate"] == found["classifier"] != found["answers"]
    assert found["classifier"] == probe(PLAIN, None, images)["answers"]
    purified = opaque(lambda images, ids: images.flatten(1) / 2)
    assert found["purified"] == pytest.approx(probe(purified, None, images)["answers"])


def test_numbers_are_projections_of_one_length_scale(images):
    """Of answers c * (1, ..., 1) each number is c times the same, and at most c times the answer's length."""
    one, two = (probe(opaque(lambda x, ids, c=c: c * torch.ones(len(x), 9)), None, images)["answers"] for c in (1, 2))

    assert two == pytest.approx([2 * value for value in one])
    assert max(map(abs, one)) <= 3
    assert len({round(value, 6) for value in one}) == NUMBERS


def test_a_folder_made_before_can_be_gone_on_with(images):
    """What a target is known by lies in folders of work: the same target has the same numbers, in every version."""
    drawn = opaque(lambda images, ids: images.flatten(1) + torch.rand(len(images), 16), random=True)

    plain, noisy = (torch.tensor(probe(drawn, None, images)["answers"]).view(8, NUMBERS)[k] for k in (0, 4))

    torch.testing.assert_close(plain, torch.tensor([1.580488, -0.891454, -1.672408, -1.583938]))
    torch.testing.assert_close(noisy, torch.tensor([1.437151, -0.529554, -1.051745, -1.570308]))


def test_what_cannot_be_set_is_not_known_and_what_torch_s_seed_sets_is(images):
    turns = iter(range(9))
    unset = opaque(lambda images, ids: images.flatten(1) + next(turns), random=True)
    seeded = opaque(lambda images, ids: images.flatten(1) + torch.rand(len(images), 16), random=True)

    assert probe(unset, None, images) == {}
    assert set(probe(seeded, None, images)) == {"answers"}


def test_the_classifier_of_an_unset_target_is_known_still(images):
    turns = iter(range(9))
    target = Target.purified(LINEAR, lambda images, ids: images + next(turns), random=True)

    assert set(probe(target, None, images)) == {"classifier"}


def test_torch_s_generator_is_left_as_it_was(images):
    torch.manual_seed(5)
    before = torch.get_rng_state()

    probe(opaque(lambda images, ids: torch.rand(len(images), 4), random=True), None, images)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_target_whose_answers_are_not_finite_is_known_by_finite_numbers(images, value):
    target = opaque(lambda images, ids: torch.full((len(images), 4), value).tril())

    found = probe(target, None, images)

    assert set(found) == {"answers"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    check_probe(found, found)


def test_infinite_answers_are_none_s_but_theirs(images):
    found = [
        probe(opaque(lambda images, ids, value=value: torch.full((len(images), 4), value)), None, images)["answers"]
        for value in (0.0, float("inf"), -float("inf"))
    ]

    assert found[0] != found[1] != found[2] != found[0]


def test_a_model_s_answers_are_asked_for_without_gradients_and_its_modes_stay(images):
    dropout = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)).train()
    seen = []
    dropout.register_forward_hook(lambda *_: seen.append((dropout.training, torch.is_grad_enabled())))

    probe(PLAIN, dropout, images)

    assert seen == [(False, False)] * 2
    assert dropout.training


KNOWN = {"answers": [1.0, 2.0, 100.0], "classifier": [0.0]}


@pytest.mark.parametrize(
    "found", [KNOWN, {**KNOWN, "classifier": [0.9e-4]}, {**KNOWN, "answers": [1.0, 1.9998, 100.009]}]
)
def test_numbers_that_differ_by_rounding_are_the_same_target_s(found):
    check_probe(found, KNOWN)
    check_probe(KNOWN, found)


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({**KNOWN, "classifier": [1.1e-4]}, "classifier"),
        ({**KNOWN, "answers": [1.0, 2.0, 100.011]}, "answers"),
        ({**KNOWN, "answers": [1.0, 2.0]}, "answers"),
        ({**KNOWN, "answers": [2.0, 1.0, 100.0]}, "answers"),
        ({"answers": KNOWN["answers"]}, "classifier"),
        ({"classifier": [0.0]}, "answers"),
        ({**KNOWN, "purified": [0.0]}, "purified"),
        ({"answers": [0.0], "classifier": [1.0]}, "answers"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_another_target_is_refused_by_the_name_of_what_differs_first(found, name, swapped):
    first, second = (KNOWN, found) if swapped else (found, KNOWN)

    with pytest.raises(ValueError, match=rf"its {name} are others now, though weights and settings agree; evaluate in"):
        check_probe(first, second)
