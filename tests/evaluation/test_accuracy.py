import pytest

from fastdef.evaluation import Accuracy


# Newcombe (1998), Statistics in Medicine 17:857, Table I, method 3: Wilson's interval without continuity correction.
@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilson_s(correct, count, low, high):
    found = Accuracy(correct, count).interval

    assert found == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count", [16, 27, 40])
def test_the_interval_ends_at_none_and_at_all_whatever_the_rounding(count):
    assert Accuracy(0, count).interval[0] >= 0
    assert Accuracy(count, count).interval[1] <= 1


def test_a_report_has_the_share_the_counts_and_the_interval():
    found = Accuracy(3, 4)

    assert found.to_json() == {"value": 0.75, "correct": 3, "count": 4, "interval": list(found.interval)}


def test_an_accuracy_reads_as_a_share_with_its_counts_and_interval():
    assert str(Accuracy(15, 148)) == "10.1% (15/148, 95 % interval 6.2% to 16.0%)"


def test_counts_add_up():
    assert Accuracy(3, 4) + Accuracy(0, 1) == Accuracy(3, 5)
    assert str(Accuracy(3, 5)).startswith("60.0% (3/5")


@pytest.mark.parametrize(("correct", "count"), [(0, 0), (2, 1), (-1, 3)])
def test_impossible_counts_are_refused(correct, count):
    with pytest.raises(ValueError, match="correct"):
        Accuracy(correct, count)


@pytest.mark.parametrize(("correct", "value"), [(0, 0.0), (7, 1.0)])
def test_none_and_all_may_be_right(correct, value):
    assert Accuracy(correct, 7).value == value
