"""What the picture shows, by its lines and not by its pixels."""

import pytest

from fastdef.evaluation import Accuracy, Strengths, draw_strengths
from fastdef.evaluation.figure import strengths_figure
from fastdef.evaluation.shift import Shift

EPS = (0.0, 4 / 255, 8 / 255)


def measured(*names, correct=(18, 10, 1), count=20, channels=3, w1=(None, None, None)):
    """A model with as many parts as names, each of them as often right."""
    rows = {name: [Accuracy(right, count) for right in correct] for name in names or ("model",)}
    shifts = [
        Shift(
            weight,
            [place + channel for channel in range(channels)],
            [10 * place + channel + 1 for channel in range(channels)],
        )
        for place, weight in enumerate(w1)
    ]
    return Strengths(EPS, 20, rows, {}, "block1", shifts, {name: [0, 0, 0] for name in rows})


def panels(models):
    return strengths_figure(models, title="noise").axes


def label_texts(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def bar_ends(container):
    """The (x, y) pairs at which each error bar ends."""
    _, _, (bars,) = container
    return [segment.tolist() for segment in bars.get_segments()]


def test_every_accuracy_stands_in_percent_over_its_eps_with_its_interval():
    accuracy, *_ = panels({"plain": measured()})

    (container,) = accuracy.containers
    assert container[0].get_xdata().tolist() == pytest.approx([0, 4, 8])
    assert container[0].get_ydata().tolist() == pytest.approx([90, 50, 5])
    intervals = [Accuracy(right, 20).interval for right in (18, 10, 1)]
    expected = [[(x, 100 * low), (x, 100 * high)] for x, (low, high) in zip((0, 4, 8), intervals, strict=True)]
    for ends, points in zip(bar_ends(container), expected, strict=True):
        assert ends == [pytest.approx(point) for point in points]


def test_all_right_and_none_right_are_drawn_where_rounding_ends_the_interval_on_the_wrong_side():
    accuracy, *_ = panels({"plain": measured(correct=(25, 25, 0), count=25)})

    assert Accuracy(25, 25).interval[1] < 1
    assert Accuracy(0, 25).interval[0] > 0
    first, _, last = bar_ends(accuracy.containers[0])
    assert first[1][1] == pytest.approx(100)
    assert last[0][1] == pytest.approx(0)


def test_a_model_alone_is_labelled_by_its_name_and_its_parts_by_name_and_part():
    accuracy, *_ = panels({"plain": measured(), "afa": measured("AFA", "branch 0")})

    assert label_texts(accuracy) == ["plain", "afa: AFA", "afa: branch 0"]


def test_a_model_has_one_colour_and_each_of_its_parts_a_style():
    parts = measured("whole", "a", "b", "c", w1=((0.5, 0.1),) * 3)

    accuracy, weight, *_ = panels({"plain": measured(), "afa": parts})

    lines = [container[0] for container in accuracy.containers]
    assert [line.get_color() for line in lines] == ["C0", "C1", "C1", "C1", "C1"]
    assert [line.get_linestyle() for line in lines] == ["-", "-", ":", "--", "-."]
    assert weight.containers[0][0].get_color() == "C1"


def test_more_parts_than_styles_begin_with_the_first_style_again():
    accuracy, *_ = panels({"model": measured(*"abcdefghi")})

    assert [container[0].get_linestyle() for container in accuracy.containers][3:] == ["-.", "-", ":", "--", "-.", "-"]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (8, 1), (9, 2)])
def test_a_legend_of_more_than_eight_lines_is_smaller_and_in_two_columns(count, columns):
    accuracy, weight, *_ = panels({f"model {k}": measured(w1=((0.5, 0.1),) * 3) for k in range(count)})

    legend, usual = accuracy.get_legend(), weight.get_legend().get_texts()[0].get_fontsize()
    assert len(legend.get_texts()) == count
    assert legend._ncols == columns
    size = legend.get_texts()[0].get_fontsize()
    assert size < usual if columns == 2 else size == usual


def test_accuracies_are_shown_from_none_to_all_and_weights_from_0_to_1():
    accuracy, weight, *_ = panels({"afa": measured(w1=((0.5, 0.1),) * 3)})

    assert accuracy.get_ylim() == (0, 100)
    assert weight.get_ylim() == (0, 1)
    assert (accuracy.get_ylabel(), accuracy.get_xlabel()) == (
        "accuracy, %, with 95 % interval",
        "eps of white-box PGD, 255ths",
    )
    assert (weight.get_ylabel(), weight.get_xlabel()) == (
        "W1, mean and deviation over images",
        "eps of PGD through the whole model, 255ths",
    )


def test_the_weights_of_every_model_that_has_them_stand_over_its_eps_with_their_deviation():
    w1 = ((0.25, 0.05), (0.5, 0.125), (0.75, 0.25))

    _, weight, *_ = panels({"plain": measured(), "afa": measured(w1=w1)})

    (container,) = weight.containers
    assert container[0].get_xdata().tolist() == pytest.approx([0, 4, 8])
    assert container[0].get_ydata().tolist() == pytest.approx([0.25, 0.5, 0.75])
    assert [[y for _, y in ends] for ends in bar_ends(container)] == [
        pytest.approx([0.2, 0.3]),
        pytest.approx([0.375, 0.625]),
        pytest.approx([0.5, 1.0]),
    ]
    assert label_texts(weight) == ["afa"]
    assert not weight.texts


def test_where_no_model_has_a_weight_its_panel_says_so_in_the_middle():
    _, weight, *_ = panels({"plain": measured()})

    (text,) = weight.texts
    assert text.get_text() == "no model here has a fusing weight"
    assert text.get_position() == (0.5, 0.5)
    assert text.get_transform() == weight.transAxes
    assert weight.get_legend() is None


@pytest.mark.parametrize(("channels", "shown"), [(3, 3), (12, 12), (13, 12)])
def test_at_most_twelve_channels_of_the_last_model_are_followed_over_its_eps(channels, shown):
    models = {"first": measured(channels=20, correct=(1, 1, 1)), "last": measured(channels=channels)}

    *_, mean, variance = panels(models)

    for axis, values in ((mean, lambda place, k: place + k), (variance, lambda place, k: 10 * place + k + 1)):
        assert len(axis.lines) == shown
        for channel, line in enumerate(axis.lines):
            assert line.get_xdata().tolist() == pytest.approx([0, 4, 8])
            assert line.get_ydata().tolist() == [values(place, channel) for place in range(3)]


def test_one_strength_alone_can_be_drawn():
    alone = Strengths((8 / 255,), 20, {"model": [Accuracy(1, 2)]}, {}, "block1", [Shift((0.5, 0.1), [1.0], [2.0])], {})

    accuracy, weight, mean, variance = panels({"model": alone})

    shown = [accuracy.containers[0][0], weight.containers[0][0], *mean.lines, *variance.lines]
    assert [line.get_xdata().tolist() for line in shown] == [[pytest.approx(8)]] * 4
    assert [line.get_ydata().tolist() for line in shown] == [[50], [0.5], [1.0], [2.0]]


def test_every_line_can_be_seen_and_its_points_too():
    accuracy, weight, mean, variance = panels({"afa": measured(w1=((0.5, 0.1),) * 3)})

    for line in (accuracy.containers[0][0], weight.containers[0][0], *mean.lines, *variance.lines):
        assert line.get_linewidth() > 0
        assert line.get_marker() in ("o", ".")
        assert line.get_markersize() > 0


def test_every_panel_and_the_picture_say_what_they_show():
    figure = strengths_figure({"first": measured(), "last": measured()}, title="a title")

    _, _, mean, variance = figure.axes
    assert figure.get_suptitle() == "a title"
    assert mean.get_title() == "last: mean of block1's first channels"
    assert variance.get_title() == "last: variance of block1's first channels"
    assert mean.get_xlabel() == variance.get_xlabel() == "eps, 255ths"


def test_the_panels_stand_two_by_two():
    accuracy, weight, mean, variance = panels({"plain": measured()})

    places = [
        (axis.get_subplotspec().rowspan.start, axis.get_subplotspec().colspan.start)
        for axis in (accuracy, weight, mean, variance)
    ]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_file_is_a_png_whatever_its_name(tmp_path):
    draw_strengths({"plain": measured()}, tmp_path / "picture", title="noise")

    assert (tmp_path / "picture").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
