"""Which gradients of an attack were of no use, and whose."""

import pytest
import torch

from fastdef.attacks import GradientRecord, GradientShares, cross_entropy, margin


@pytest.mark.parametrize(("useless", "of", "vanished"), [(0, 4, False), (1, 4, False), (2, 4, True), (1, 1, True)])
def test_an_image_is_untested_where_half_of_its_gradients_led_nowhere(useless, of, vanished):
    record = GradientRecord(1)
    for number in range(of):
        record.observe(torch.full((1, 1, 2, 2), float(number >= useless)))

    assert record.vanished.tolist() == [vanished]
    assert record.shares() == GradientShares(of, useless, 0, 0)


def test_a_gradient_without_a_step_is_untested():
    assert GradientRecord(2).vanished.tolist() == [True, True]


def test_zero_is_zero_all_over_and_neither_negative_nor_partly():
    record = GradientRecord(4)

    record.observe(torch.tensor([[0.0, 0.0], [-1.0, -2.0], [0.0, 1.0], [torch.nan, 0.0]])[..., None, None])

    assert record.counts.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]]


def test_saturation_is_of_cross_entropy_where_the_label_has_all_the_probability():
    record, labels = GradientRecord(3), torch.tensor([1, 1, 0])
    logits = torch.tensor([[0.0, 200.0], [0.0, 2.0], [0.0, 200.0]])

    watched = record.watched(cross_entropy)(logits, labels)
    record.observe(torch.ones(3, 1, 1, 1))

    assert torch.equal(watched, cross_entropy(logits, labels))
    assert record.counts[:, 3].tolist() == [1, 0, 0]
    assert record.watched(margin) is margin


def test_shares_add_up_from_nothing_and_nothing_has_none():
    assert GradientShares() == GradientShares(0, 0, 0, 0)
    assert GradientShares() + GradientShares(4, 1, 2, 3) == GradientShares(4, 1, 2, 3)
    assert GradientShares(1, 1, 0, 0).to_json() == {"count": 1, "zero": 1.0, "nan": 0.0, "saturated": 0.0}
    assert GradientShares(4, 1, 2, 3).to_json() == {"count": 4, "zero": 0.25, "nan": 0.5, "saturated": 0.75}
    assert GradientShares().to_json() == {"count": 0, "zero": 0.0, "nan": 0.0, "saturated": 0.0}
