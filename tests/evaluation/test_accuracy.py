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
