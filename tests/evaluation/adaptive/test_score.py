from types import SimpleNamespace

import pytest
import torch

from fastdef.evaluation.adaptive.attack_case import Batch, Predictions
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.results import AdaptiveResults
from fastdef.evaluation.adaptive.score import Score, by_label, lowest
from fastdef.evaluation.adaptive.target import Answers, Target


def predictions(right):
    right = torch.tensor(right).bool()
    steps = torch.arange(right.numel(), dtype=torch.int32).view(right.shape)
    return Predictions(right, steps, steps > 4, torch.ones(len(right)), torch.ones_like(right))


def batch(count):
    return Batch(torch.rand(count, 1, 2, 2), torch.zeros(count).long(), torch.arange(count), 0, lambda key: None)


def answering(probability):
    """A target that is right by chance, and notes whom it answers; points of other brightness are harder."""
    asked = []

    def answer(images, ids):
        asked.append(ids)
        generator = torch.Generator().manual_seed(int(ids.sum()) % 1000)
        right = torch.rand(len(images), generator=generator) < probability(images)
        logits = torch.stack([right.float(), 1 - right.float()], 1)
        nothing = torch.zeros(len(images), dtype=torch.int64)
        return Answers(logits, nothing, nothing.bool())

    return Target(answer, random=True), asked


def test_mean_worst_one_shot_and_deviation_are_what_they_say():
    score = Score.of(predictions([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]))

    assert score.mean == pytest.approx(8 / 16)
    assert score.worst == pytest.approx(1 / 4)
    assert score.majority == pytest.approx(1 / 4)  # two of four is no majority
    assert score.one_shot == pytest.approx(2 / 4)
    assert score.deviation == pytest.approx(torch.tensor([0.5, 0.75, 0.5, 0.25]).std().item())
    assert (score.count, score.noise_samples, score.steps_most, score.capped) == (4, 4, 15, 11)
    assert score.interval[0] < 0.5 < score.interval[1]


def test_one_answer_has_no_deviation():
    assert Score.of(predictions([[1], [0]])).deviation is None


def test_every_noise_sample_has_its_own_noise_and_no_attacker_s():
    target, asked = answering(lambda images: torch.full((len(images),), 0.5))

    judged = by_label(target)(batch(3), torch.rand(3, 1, 2, 2), 5, SeedStream.EVALUATION)
    by_label(target)(batch(3), torch.rand(3, 1, 2, 2), 5, SeedStream.CHOICE)

    assert judged.right.shape == (3, 5)
    assert len(torch.cat(asked).unique()) == 30


def test_the_candidate_that_is_answered_right_least_often_is_kept_image_by_image():
    target, _ = answering(lambda images: images.mean((1, 2, 3)))
    bright, dark = torch.ones(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
    first = torch.cat([bright[:2], dark[:2]])
    second = torch.cat([dark[:2], bright[:2]])

    kept = lowest(by_label(target), batch(4), [first, second], noise_samples=6)

    assert torch.equal(kept, dark)


def test_of_equally_bad_candidates_the_first_is_kept():
    target, _ = answering(lambda images: torch.zeros(len(images)))
    first, second = torch.rand(4, 1, 2, 2), torch.rand(4, 1, 2, 2)

    assert torch.equal(lowest(by_label(target), batch(4), [first, second], noise_samples=6), first)


def test_the_headline_of_equal_rows_is_not_too_low_by_chance():
    """25 rows of 48 images, answered right half of the time: the least mean is 4 points too low, the headline not."""
    generator = torch.Generator().manual_seed(0)
    least, headlines = [], []

    for _ in range(60):
        rows = [Score.of(predictions((torch.rand(48, 10, generator=generator) < 0.5).tolist())) for _ in range(25)]
        lines = [SimpleNamespace(score=score, case=SimpleNamespace(counts=True)) for score in rows]
        headlines.append(AdaptiveResults(lines, [], {}, True).headline.score.judgement)
        least.append(min(score.mean for score in rows))

    assert sum(least) / 60 < 0.47
    assert sum(headlines) / 60 == pytest.approx(0.5, abs=0.015)


def test_selection_and_judgement_share_no_noise_sample():
    score = Score.of(predictions([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]]))

    assert score.selection == pytest.approx(3 / 4)
    assert score.judgement == pytest.approx(1 / 6)
    assert Score.of(predictions([[1], [0]])).selection == Score.of(predictions([[1], [0]])).judgement == 0.5
