import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastdef.data import Dataset
from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.adaptive import Target
from fastdef.evaluation.adaptive.first_screen import Bar, bars, pictures
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from fastdef.evaluation.adaptive.rows import sanity
from tests.evaluation.adaptive.linear import LINEAR, PLAIN, SIDE
from tests.evaluation.adaptive.lines import line, results, scored, scoreless

CLASSES = ("shirt", "bag", "coat", "boot")
CLEAN = line(0, sanity.CLEAN, 18)


def bar(label, kind, right, of=20):
    return Bar(label, kind, right / of, *Accuracy(right, of).interval, of)


def test_a_bar_stands_for_clean_images_and_for_the_lowest_line_of_each_row():
    lines = [
        line(6, "Square", 12, counts=True),
        line(3, "APGD", 7, counts=True),
        line(3, "margin", 5, counts=True),
        line(1, "AutoAttack", 2),
        line(4, "unrolled", 9, counts=True),
        line(0, sanity.HUGE, 0),
        CLEAN,
    ]

    assert bars(results(*lines)) == [
        bar("clean images", "aside", 18),
        bar("1 AutoAttack", "aside", 2),
        bar("3 margin", "headline", 5),
        bar("4 unrolled", "counts", 9),
        bar("6 Square", "counts", 12),
    ]


def test_the_headline_stands_for_its_row_by_its_judgement():
    lowest = scored(line(3, "by luck", 1, counts=True), selection=0.9)
    chosen = scored(line(3, "chosen", 5, counts=True), selection=0.1, judgement=0.5)

    assert bars(results(lowest, chosen)) == [bar("3 chosen", "headline", 10)]


@pytest.mark.parametrize(("aside", "counting"), [(1, 9), (9, 1)])
def test_of_a_row_what_counts_comes_before_what_does_not(aside, counting):
    lines = [line(3, "headline", 0, counts=True), line(8, "aside", aside), line(8, "counts", counting, counts=True)]

    assert bars(results(*lines))[1] == bar("8 counts", "counts", counting)


def test_rows_without_a_score_have_no_bar():
    lines = [scoreless(0, sanity.CLEAN), scoreless(3, "none", counts=True), line(6, "Square", 3, counts=True)]

    assert [one.label for one in bars(results(*lines))] == ["6 Square"]
    assert bars(results()) == []


def test_without_an_attack_that_counts_no_bar_is_the_headline_s():
    assert bars(results(CLEAN, line(1, "AutoAttack", 2), line(1, "another", 1))) == [
        bar("clean images", "aside", 18),
        bar("1 another", "aside", 1),
    ]


def images_of(channels=1):
    shape = (4, channels, SIDE, SIDE)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset(pixels, torch.tensor([3, 1, 2, 0]), CLASSES, "made", "test")


def attacked(*places, channels=1):
    """The headline's line, whose attack mirrored the images."""
    examples = images_of(channels).floats(0, 4).flip(3)[[*places]]
    return replace(line(3, "x", 2, counts=True), places=[*places], examples=examples)


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.data))))


def test_the_hardest_image_is_shown_clean_and_attacked_with_what_the_classifier_takes_it_for():
    dataset = images_of()

    clean, after = pictures(results(attacked(2, 0)), PLAIN, dataset)

    assert (clean.title, after.title) == ("clean", "attacked")
    assert np.array_equal(pixels(clean), dataset.images[2, 0])
    assert np.array_equal(pixels(after), dataset.images[2, 0].flip(1))
    answers = LINEAR(torch.cat([dataset.floats(2, 3), dataset.floats(2, 3).flip(3)])).argmax(1)
    assert [clean.caption, after.caption] == [CLASSES[int(answer)] for answer in answers]


def test_and_after_the_defense_with_the_evaluation_s_noise():
    asked = []
    target = Target.purified(
        LINEAR, lambda images, ids: asked.append((len(images), ids)) or 2 - 3 * images, random=True
    )

    _, after, purified = pictures(results(attacked(2, 0)), target, images_of())

    assert purified.title == "attacked, after the defense"
    ((count, ids),) = asked
    assert count == 1
    assert torch.equal(ids, noise_seeds(torch.tensor([2]), range(1), SeedStream.EVALUATION))
    expected = (510 - 3 * pixels(after).astype(int)).clip(0, 255)  # some leave [0, 1], and are cut
    assert len(np.unique(pixels(purified))) > 3
    assert np.array_equal(pixels(purified), expected)


def test_colours_are_shown_as_colours_and_who_only_answers_takes_them_for_nothing():
    target = Target.opaque(lambda images, ids: None, random=False)

    clean, after = pictures(results(attacked(1, channels=3)), target, images_of(3))

    assert np.array_equal(pixels(clean), images_of(3).images[1].permute(1, 2, 0))
    assert np.array_equal(pixels(after), images_of(3).images[1].permute(1, 2, 0).flip(1))
    assert clean.caption == after.caption == ""


def test_without_a_headline_or_images_of_it_nothing_is_shown():
    assert pictures(results(CLEAN), PLAIN, images_of()) == []
    assert pictures(results(attacked()), PLAIN, images_of()) == []


def test_no_gradient_is_taken():
    modes = []
    target = Target.purified(LINEAR, lambda images, ids: modes.append(torch.is_grad_enabled()) or images, random=False)

    pictures(results(attacked(1)), target, images_of())

    assert modes == [False]
