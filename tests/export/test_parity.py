import pytest
import torch

from fastdef.export.parity import SINGLE, Ends, Whole


def ends(probabilities):
    return Ends(torch.ones(len(probabilities), dtype=torch.int64), torch.tensor(probabilities))


@pytest.mark.parametrize(
    ("answered", "equal"),
    [
        ([0.50000001, 0.49999999], 1.0),  # as likely but for rounding
        ([0.4, 0.6], 0.0),
    ],
)
def test_a_decision_is_equal_where_the_classes_are_as_likely_but_for_rounding(answered, equal):
    expected = [0.49999999, 0.50000001] if equal else [0.6, 0.4]

    compared = Whole.of("x", ends([answered]), ends([expected]), SINGLE)

    assert compared.decisions_equal == equal


def test_a_probability_that_is_nan_does_not_hold():
    nan = float("nan")

    assert not Whole.of("x", ends([[nan, nan]]), ends([[0.6, 0.4]]), SINGLE).holds
