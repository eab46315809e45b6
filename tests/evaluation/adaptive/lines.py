"""Lines of a table as if an attack had been run, and what is compared of them."""

from dataclasses import replace

import torch

from fastdef.evaluation.adaptive.attack_case import AttackCase, Predictions
from fastdef.evaluation.adaptive.results import AdaptiveResults, Line
from fastdef.evaluation.adaptive.rows import sanity
from fastdef.evaluation.adaptive.score import Score


def line(row, name, right, of=20, *, loss=1.0, counts=False, craft=None, eps=8 / 255):
    """A line of which ``right`` of 20 images are answered right."""
    answers = (torch.arange(of) < right)[:, None]
    none = torch.zeros_like(answers)
    predictions = Predictions(answers, none.int(), none, torch.full((of,), loss), ~none)
    case = AttackCase(row, name, craft or sanity.Clean(None), None, eps, of, 1, counts=counts)
    return Line(case, Score.of(predictions), 0.0, 0.0, torch.zeros(0), [], [0])


def scoreless(row, name, *, counts=False):
    """A line of which nothing could be evaluated."""
    return replace(line(row, name, 0, counts=counts), score=None)


def scored(found, **figures):
    """The line with other figures."""
    return replace(found, score=replace(found.score, **figures))


def results(*lines, settings=None, random=False, alignment=None):
    """The results that have these lines."""
    return AdaptiveResults(list(lines), [], settings or {}, random, alignment)


def told(found):
    """What must not depend on interruptions: everything but times."""
    lines = found.to_json()["lines"]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


def names(found):
    return {line.label for line in found.lines}
