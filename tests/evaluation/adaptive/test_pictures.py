import base64
import io
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from fastdef.data import Dataset
from fastdef.evaluation.adaptive import Target, pictures
from fastdef.evaluation.adaptive.attack_case import Attack
from fastdef.evaluation.adaptive.noise_seeds import SeedStream, noise_seeds
from fastdef.evaluation.adaptive.pictures import draw_curves, draw_examples, draw_steps
from fastdef.evaluation.adaptive.rows import sanity
from tests.evaluation.adaptive.linear import LINEAR, PLAIN, SIDE
from tests.evaluation.adaptive.lines import line, results, scored, scoreless

CLASSES = ("shirt", "bag", "coat", "boot")


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, which are not rendered."""
    made, figure = [], pictures._figure
    monkeypatch.setattr(pictures, "_figure", lambda *size: made.append(figure(*size)) or made[-1])
    monkeypatch.setattr(pictures, "_svg", lambda figure: "<svg>")
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    return made


@dataclass(frozen=True)
class Ascent(Attack):
    iterations: int
    steps: int | None = 5
    eot: int = 2
    loss: str = "cross-entropy"

    def __call__(self, batch) -> Any:
        raise NotImplementedError


def attacked(row, name, right, *, eps=8, iterations=10, **settings):
    return line(row, name, right, eps=eps / 255, craft=Ascent(None, iterations, **settings))


def at(eps, right):
    return attacked(0, sanity.eps_name(eps), right, eps=eps)


def after(iterations, right):
    return attacked(0, sanity.iterations_name(iterations), right, iterations=iterations)


CLEAN = line(0, sanity.CLEAN, 20, eps=0.0)
HUGE = attacked(0, sanity.HUGE, 0, eps=64)
SETTINGS = {"eps": 8 / 255}


def points(axis):
    """Places and heights, and the ends of each error bar."""
    (container,) = axis.containers
    drawn, _, (bars,) = container.lines
    ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
    return drawn.get_xydata().tolist(), ends


def test_accuracy_is_drawn_against_eps_and_against_iterations_in_their_order(figures):
    same = attacked(3, "APGD-CE through 5 steps", 10)
    curves = [at(16, 5), HUGE, same, after(5, 12), at(4, 15), after(1, 18), CLEAN]

    assert draw_curves(results(*curves, settings=SETTINGS)) == "<svg>"

    left, right = figures[0].axes
    by_eps, ends = points(left)
    assert by_eps == [[0, 100], [4, 75], [8, 50], [16, 25], [64, 0]]
    expected = [n.score.interval for n in (CLEAN, at(4, 15), same, at(16, 5), HUGE)]
    np.testing.assert_allclose(ends, 100 * np.array(expected))
    by_iterations, ends = points(right)
    assert by_iterations == [[1, 90], [5, 60]]
    np.testing.assert_allclose(ends, 100 * np.array([after(1, 18).score.interval, after(5, 12).score.interval]))


def test_the_curves_axes_say_what_they_are_of(figures):
    draw_curves(results(CLEAN, HUGE, after(1, 18), after(30, 12), settings=SETTINGS))

    left, right = figures[0].axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("eps, in 255ths", "answered right, %")
    assert right.get_xlabel() == "iterations at eps 8/255"
    assert (left.get_xscale(), right.get_xscale()) == ("linear", "log")
    assert left.get_ylim() == right.get_ylim() == (-2, 102)
    assert right.get_xticks().tolist() == [1, 30]
    assert right.get_xticks(minor=True).tolist() == []
    assert right.xaxis.get_major_formatter()(30.0) == "30"


@pytest.mark.parametrize(
    "other",
    [
        attacked(3, "margin", 10, loss="margin"),
        attacked(3, "depth", 10, steps=7),
        attacked(3, "draws", 10, eot=3),
        attacked(3, "length", 10, iterations=11),
        attacked(4, "row", 10),
        attacked(2, "row", 10),
        line(3, "no settings", 10),
        line(0, "random noise", 10),
        line(1, "curve: eps of another row", 10),
    ],
)
def test_an_attack_that_is_not_the_curve_s_is_no_point_of_it(figures, other):
    draw_curves(results(CLEAN, other, HUGE, settings=SETTINGS))

    assert points(figures[0].axes[0])[0] == [[0, 100], [64, 0]]


@pytest.mark.parametrize("lines", [[CLEAN, after(1, 18)], [HUGE, after(1, 18)], [scoreless(0, sanity.CLEAN), HUGE], []])
def test_without_clean_images_or_radii_there_is_no_curve(figures, lines):
    assert draw_curves(results(*lines, settings=SETTINGS)) is None
    assert figures == []


def test_without_iterations_the_curve_against_eps_is_drawn_alone(figures):
    draw_curves(results(CLEAN, HUGE, settings=SETTINGS))

    assert [points(axis)[0] for axis in figures[0].axes] == [[[0, 100], [64, 0]], []]


@pytest.mark.parametrize(("interval", "ends"), [((0.6, 0.7), (50, 70)), ((0.2, 0.4), (20, 50))])
def test_an_interval_beside_the_mean_ends_at_the_mean(figures, interval, ends):
    draw_curves(results(CLEAN, scored(HUGE, mean=0.5, interval=interval), settings=SETTINGS))

    assert points(figures[0].axes[0])[1][1] == pytest.approx(ends)


def test_curves_are_svg_that_a_page_can_hold():
    found = draw_curves(results(CLEAN, HUGE, after(1, 18), settings=SETTINGS))

    assert found.startswith("<svg")
    assert found.rstrip().endswith("</svg>")


def walked(found, steps):
    return replace(found, steps=steps)


def histogram(patch):
    """Edges and heights of a histogram that is drawn as steps."""
    xy = patch.get_xy()
    return xy[::2, 0], xy[1:-1:2, 1]


def test_steps_are_drawn_as_shares_of_the_answers_clean_and_under_the_strongest_attack(figures):
    clean = walked(CLEAN, [0, 1, 1, 2])
    strongest = walked(line(3, "strongest", 2, counts=True), [50, 99, 99, 99, 1])
    weaker = walked(line(3, "weaker", 5, counts=True), [500])

    assert draw_steps(results(clean, weaker, strongest)) == "<svg>"

    (axis,) = figures[0].axes
    drawn = [histogram(patch) for patch in axis.patches]
    assert len(drawn) == 2
    for (edges, heights), steps in zip(drawn, ([1, 1, 1, 2], [50, 99, 99, 99, 1]), strict=True):
        assert edges[0] == 1
        assert edges[-1] == pytest.approx(100)
        ratios = edges[1:] / edges[:-1]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
        np.testing.assert_allclose(heights, np.histogram(steps, edges)[0] / len(steps))
        assert heights.sum() == pytest.approx(1)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["clean", "strongest"]


def test_the_steps_axes_say_what_they_are_of(figures):
    draw_steps(results(walked(CLEAN, [1])))

    (axis,) = figures[0].axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("steps of the defense", "share of answers")
    assert axis.get_xscale() == "log"
    assert not axis.get_legend().get_frame_on()


def test_what_took_no_steps_is_not_drawn(figures):
    standing, moving = walked(CLEAN, [0, 0]), walked(line(3, "x", 2, counts=True), [0, 3])

    draw_steps(results(standing, moving))

    assert len(figures[0].axes[0].patches) == 1
    assert draw_steps(results(standing)) is draw_steps(results()) is None


def test_steps_are_svg_that_a_page_can_hold():
    assert draw_steps(results(walked(CLEAN, [1, 5]))).startswith("<svg")


def images_of(channels=1):
    shape = (4, channels, SIDE, SIDE)
    pixels = torch.randint(20, 200, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset(pixels, torch.tensor([3, 1, 2, 0]), CLASSES, "made", "test")


def shown(dataset, places=(2, 0), change=0.05):
    """The headline's line, with images that it attacked."""
    clean = torch.cat([dataset.floats(place, place + 1) for place in places])
    signs = torch.rand(clean.shape, generator=torch.Generator().manual_seed(10)).sub(0.5).sign()
    found = line(3, "x", 2, counts=True)
    return replace(found, places=[*places], examples=(clean + change * signs).clamp(0, 1)), clean


def grid(figure, rows):
    """Axes by row and column."""
    return np.array(figure.axes).reshape(rows, -1)


def column(axes, number):
    return np.stack([axis.images[0].get_array().data for axis in axes[:, number]])


def test_an_attack_s_images_are_drawn_beside_the_clean_ones_and_what_it_changed(figures):
    dataset = images_of()
    one, clean = shown(dataset)

    assert draw_examples(results(one), PLAIN, dataset) == ""

    axes = grid(figures[0], 2)
    assert [axis.get_title() for axis in axes[0]] == ["difference x 8", "clean", "attacked"]
    np.testing.assert_allclose(column(axes, 0), (0.5 + 4 * (one.examples - clean)).clamp(0, 1)[:, 0])
    np.testing.assert_allclose(column(axes, 1), clean[:, 0])
    np.testing.assert_allclose(column(axes, 2), one.examples[:, 0])
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["coat", "boot"]
    for number, images in ((1, clean), (2, one.examples)):
        answers = [CLASSES[int(answer)] for answer in LINEAR(images).argmax(1)]
        assert [axis.get_xlabel() for axis in axes[:, number]] == answers
    assert [axis.get_xlabel() for axis in axes[:, 0]] == ["", ""]


@pytest.mark.parametrize(
    ("target", "columns"), [(PLAIN, 3), (Target.purified(LINEAR, lambda x, ids: x, random=False), 4)]
)
@pytest.mark.parametrize("places", [(2, 0), (1,)])
def test_an_image_has_as_much_room_across_as_down(figures, target, columns, places):
    one, _ = shown(images_of(), places)

    draw_examples(results(one), target, images_of())

    width, height = figures[0].get_size_inches()
    assert width / columns == height / len(places)


def test_images_are_gray_from_black_to_white_without_frame_or_ticks(figures):
    one, _ = shown(images_of())

    draw_examples(results(one), PLAIN, images_of())

    for axis in figures[0].axes:
        (image,) = axis.images
        assert (image.norm.vmin, image.norm.vmax, image.cmap.name) == (0, 1, "gray")
        assert len(axis.get_xticks()) == len(axis.get_yticks()) == 0
        assert not axis.get_frame_on()


def test_colours_are_drawn_as_colours_and_none_is_out_of_range(figures, monkeypatch):
    cut = []
    monkeypatch.setattr(logging.getLogger("matplotlib.image"), "warning", lambda *text: cut.append(text))
    dataset = images_of(3)
    one, clean = shown(dataset, places=(1,), change=0.5)
    target = Target.opaque(lambda images, ids: None, random=False)

    draw_examples(results(replace(one, examples=one.examples * 3 - 1)), target, dataset)

    axes = grid(figures[0], 1)
    np.testing.assert_allclose(column(axes, 1)[0], clean[0].permute(1, 2, 0))
    np.testing.assert_allclose(column(axes, 2)[0], (one.examples * 3 - 1)[0].clamp(0, 1).permute(1, 2, 0))
    assert cut == []  # matplotlib would say so
    assert {axis.get_xlabel() for axis in figures[0].axes} == {""}  # who only answers is not asked


def test_what_a_purification_makes_of_an_attacked_image_is_drawn_with_the_evaluation_s_noise(figures):
    dataset = images_of()
    one, _ = shown(dataset)
    asked = []
    target = Target.purified(LINEAR, lambda images, ids: asked.append(ids) or images / 2, random=True)

    draw_examples(results(one), target, dataset)

    axes = grid(figures[0], 2)
    assert [axis.get_title() for axis in axes[0]] == ["difference x 8", "clean", "attacked", "attacked, purified"]
    np.testing.assert_allclose(column(axes, 3), one.examples[:, 0] / 2)
    (ids,) = asked
    assert torch.equal(ids, noise_seeds(torch.tensor([2, 0]), range(1), SeedStream.EVALUATION))


def test_beside_each_stage_stands_the_channel_of_the_features_that_the_attack_changes_most(figures, restless):
    dataset = images_of()
    one, clean = shown(dataset)
    target = Target.defended(restless)
    ids = noise_seeds(torch.tensor([2, 0]), range(1), SeedStream.EVALUATION)

    draw_examples(results(one), target, dataset)

    axes = grid(figures[0], 2)
    features = "features"
    titles = ["difference x 8", "clean", features, "attacked", features, "attacked, purified", features]
    assert [axis.get_title() for axis in axes[0]] == titles
    with torch.no_grad():
        stages = [
            restless.model[:1](images) for images in (clean, one.examples, target.purify(one.examples, ids, None))
        ]
    channel = int((stages[1] - stages[0]).abs().mean((0, 2, 3)).argmax())
    values = torch.stack([stage[:, channel] for stage in stages])
    scaled = (values - values.min()) / (values.max() - values.min())
    assert values.min() < 0
    for number, maps in zip((2, 4, 6), scaled, strict=True):
        np.testing.assert_allclose(column(axes, number), colormaps["viridis"](maps.numpy()), atol=1e-6)


def test_a_defense_without_a_classifier_has_no_feature_maps(figures, restless):
    one, _ = shown(images_of())

    draw_examples(results(one), replace(PLAIN, classifier=None, defense=restless), images_of())

    assert len(figures[0].axes) == 2 * 3


def test_without_a_headline_or_images_of_it_nothing_is_shown(figures):
    dataset = images_of()
    one, _ = shown(dataset)

    assert draw_examples(results(), PLAIN, dataset) is None
    assert draw_examples(results(replace(one, places=[])), PLAIN, dataset) is None


def test_examples_are_a_png_that_a_page_can_hold():
    dataset = images_of()
    one, _ = shown(dataset, places=(1,))

    found = draw_examples(results(one), PLAIN, dataset)

    assert Image.open(io.BytesIO(base64.b64decode(found))).format == "PNG"
