"""What attacks raise, by hand."""

import pytest
import torch

from fastdef.attacks import cross_entropy, dlr, margin, probability_margin, targeted_dlr

LOGITS = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 5.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 0])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (margin, [-(3 - 1 + 50), -(0 - 5 + 50)]),
        (dlr, [-(3 - 1) / (3 - 0.5), -(0 - 5) / (5 - 2)]),
        (
            lambda logits, labels: targeted_dlr(logits, labels, torch.tensor([2, 3])),
            [-(3 - 0.5) / (3 - (0.5 - 1) / 2), -(0 - 4) / (5 - (2 + 0) / 2)],
        ),
        (
            cross_entropy,
            [
                -3 + float(torch.logsumexp(LOGITS[0], 0)),
                -0 + float(torch.logsumexp(LOGITS[1], 0)),
            ],
        ),
    ],
)
def test_a_loss_is_its_equation(loss, expected):
    torch.testing.assert_close(loss(LOGITS, LABELS), torch.tensor(expected, dtype=torch.float64))


def test_the_probability_margin_is_of_probabilities_and_of_the_likeliest_other_class():
    p = torch.tensor([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0, 2])

    found = probability_margin(p.log() + 7, labels)

    torch.testing.assert_close(found, torch.tensor([0.5, -0.3, 0.2, -1.0, 1.0]))


@pytest.mark.parametrize("confidence", [0.0, 2.0, 10.0])
def test_the_margin_is_flat_once_the_wrong_class_leads_by_the_confidence(confidence):
    found = margin(LOGITS, LABELS, confidence=confidence)

    assert found.tolist() == [-max(0.0, 2 + confidence), -max(0.0, -5 + confidence)]
    assert margin(torch.tensor([[0.0, 60.0]]), torch.tensor([0])).tolist() == [0]


def test_the_margin_is_to_the_largest_other_logit_though_all_of_them_are_negative():
    assert margin(torch.tensor([[2.0, -4.0, -1.0, -9.0]]), torch.tensor([0])).tolist() == [-(2 + 1 + 50)]


@pytest.mark.parametrize("loss", [dlr, lambda logits, labels: targeted_dlr(logits, labels, torch.tensor([1, 2]))])
def test_dlr_is_blind_to_the_scale_of_the_logits(loss):
    torch.testing.assert_close(loss(1000 * LOGITS, LABELS), loss(LOGITS, LABELS))


def test_of_equal_logits_dlr_is_a_number():
    assert bool(dlr(torch.ones(2, 4), LABELS).isfinite().all())
    assert bool(targeted_dlr(torch.ones(2, 4), LABELS, torch.tensor([1, 2])).isfinite().all())
