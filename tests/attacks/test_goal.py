"""What an attack raises, and which answers are right: rows of the batch that are still attacked, in any order."""

import math

import pytest
import torch

from fastdef.attacks import predicted, targeted_dlr, white_box
from fastdef.attacks._goal import targeted, untargeted

ROWS = torch.tensor([2, 0])
LABELS = torch.tensor([0, 1, 3])
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 5.0], [9.0, 1.0, 2.0, 5.0]])  # of rows 2 and 0: both right


@pytest.mark.parametrize(
    ("logits", "answer"),
    [
        ([1.0, 3.0, 2.0], 1),
        ([1.0, math.nan, 2.0], -1),
        ([math.inf, 3.0, 2.0], -1),
        ([-math.inf, 3.0, 2.0], 1),
        ([math.nan, math.nan, math.nan], -1),
    ],
)
def test_what_is_no_answer_is_nobody_s_label(logits, answer):
    assert predicted(torch.tensor([logits, [5.0, 0.0, 0.0]])).tolist() == [answer, 0]


def test_any_other_class_is_a_success():
    goal = untargeted(LABELS, lambda logits, labels: logits.sum(1) + labels)

    assert goal.right(LOGITS, ROWS).tolist() == [True, True]
    assert goal.right(LOGITS.flip(1), ROWS).tolist() == [False, False]
    assert goal.right(-LOGITS, ROWS).tolist() == [False, False]  # the answer is another class, above the label or below
    assert goal.loss(LOGITS, ROWS).tolist() == [8.0 + 3, 17.0 + 0]


def test_a_target_is_aimed_at_and_any_other_class_is_a_success_all_the_same():
    targets = torch.tensor([1, 0, 2])
    goal = targeted(LABELS, targets)

    torch.testing.assert_close(goal.loss(LOGITS, ROWS), targeted_dlr(LOGITS, LABELS[ROWS], targets[ROWS]))
    assert goal.right(LOGITS, ROWS).tolist() == [True, True]
    assert goal.right(-LOGITS, ROWS).tolist() == [False, False]
    assert goal.right(LOGITS.flip(1), ROWS).tolist() == [False, False]


@pytest.mark.parametrize("classes", [3, 2])
def test_a_label_that_the_model_has_no_class_for_is_refused(classes):
    with pytest.raises(ValueError, match=f"labels that the model has: {classes} classes, got a label 3"):
        untargeted(LABELS).loss(torch.zeros(2, classes), ROWS)


def test_a_white_box_answers_loss_gradient_and_who_is_right():
    images = torch.tensor([[[[1.0, 2.0]]], [[[4.0, 3.0]]]])
    goal = untargeted(torch.tensor([1, 1]), lambda logits, labels: (logits**2).sum(1))

    query = white_box(lambda x: x.flatten(1), goal)(images, torch.tensor([0, 1]))

    assert query.loss.tolist() == [5.0, 25.0]
    assert torch.equal(query.gradient, 2 * images)
    assert query.right.tolist() == [1.0, 0.0]
    assert query.right.dtype == images.dtype
    assert not query.loss.requires_grad
