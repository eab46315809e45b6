"""A classifier that gives NaN: never right, counted, never in a JSON file, and a check that fails."""

import json
import math

import pytest
import torch
from torch import nn

from fastdef.attacks import predicted
from fastdef.data import Dataset
from fastdef.evaluation import Attack, evaluate
from fastdef.evaluation.adaptive import BUDGETS, Target, evaluate_adaptive
from fastdef.evaluation.attack import accuracy


class Broken(nn.Module):
    """Right about every image, but not a number where the first pixel is above a half."""

    def __init__(self, value=math.nan):
        super().__init__()
        self.weight, self.value = nn.Parameter(torch.ones(1)), value

    def forward(self, x):
        logits = torch.stack([x.mean((1, 2, 3)) * 0 + 1, x.mean((1, 2, 3)) * 0], 1) * self.weight
        return logits.masked_fill((x[:, 0, 0, 0] > 0.5)[:, None], self.value)


@pytest.fixture
def dataset():
    images = torch.randint(0, 128, (12, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:5, 0, 0, 0], images[5:, 0, 0, 0] = 255, 0
    return Dataset(images, torch.zeros(12, dtype=torch.int64), ("a", "b"), "made", "test")


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([0.0, 1.0], 1),
        ([-math.inf, -2.0], 1),
        ([math.nan, 1.0], -1),
        ([1.0, math.nan], -1),
        ([math.inf, 1.0], -1),
    ],
)
def test_what_is_no_number_is_no_answer(row, label):
    assert predicted(torch.tensor([row, [5.0, 1.0]])).tolist() == [label, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_is_never_right_and_stands_in_a_column_of_its_own(dataset, value):
    evaluation = evaluate(Broken(value).eval(), dataset, attack=Attack(eps=1 / 255, steps=1))

    clean = evaluation.rows[0]
    assert (clean.accuracy.correct, clean.accuracy.count, clean.unanswered) == (7, 12, 5)
    assert evaluation.to_json()["rows"]["clean"]["unanswered"] == 5
    json.dumps(evaluation.to_json(), allow_nan=False)
    assert accuracy(Broken(value).eval(), [(dataset.floats(0, 12), dataset.labels)]).correct == 7


def test_the_adaptive_evaluation_fails_its_own_check(dataset):
    results = evaluate_adaptive(Target.plain(Broken().eval()), dataset, budget=BUDGETS["smoke"], rows=[0])

    clean = next(line for line in results.lines if line.case.name == "clean")
    assert clean.score.unanswered == 5
    assert clean.score.mean == pytest.approx(7 / 12)
    assert not results.passed
    assert any(check.name == "every answer is a number" and not check.passed for check in results.checks)
    json.dumps(results.to_json(), allow_nan=False)
