from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastdef.evaluation.accuracy import Accuracy
from fastdef.evaluation.adaptive.attack_case import Batch, Predictions
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.results import AdaptiveResults
from fastdef.evaluation.adaptive.score import MOST_LOSS, Score, by_label, lowest
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


def test_steps_are_the_median_and_the_most_of_all_answers_and_the_loss_is_a_mean():
    found = replace(
        predictions([[1, 1, 1], [1, 0, 0]]),
        steps=torch.tensor([[9, 1, 2], [7, 4, 3]], dtype=torch.int32),
        capped=torch.tensor([[True, False, False], [True, False, True]]),
        answered=torch.tensor([[True, True, True], [True, False, False]]),
        loss=torch.tensor([1.0, 4.0]),
    )

    score = Score.of(found)

    assert (score.steps_median, score.steps_most, score.capped, score.unanswered) == (3, 9, 3, 2)
    assert score.loss == 2.5


def test_a_majority_is_of_an_image_s_answers_and_more_than_half_of_them():
    assert Score.of(predictions([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])).majority == pytest.approx(2 / 3)


def test_the_interval_is_of_the_images_and_not_of_the_answers():
    score = Score.of(predictions([[1, 1], [0, 1], [0, 0], [1, 1], [0, 1]]))

    assert score.mean == pytest.approx(0.6)
    assert score.interval == Accuracy(3, 5).interval


def test_two_answers_have_a_deviation_and_half_of_them_selects():
    score = Score.of(predictions([[1, 0], [1, 0], [1, 1], [1, 1]]))

    assert score.deviation == pytest.approx(0.5 / 2**0.5)
    assert (score.selection, score.judgement, score.one_shot) == (1.0, 0.5, 1.0)


def test_the_json_has_every_figure():
    score = Score.of(predictions([[1, 0], [1, 0]]))

    told = score.to_json()

    assert told["interval"] == list(score.interval)
    assert told == {**vars(score), "interval": told["interval"]}


class Fixed:
    """A target of fixed answers, of an image or of a noise sample."""

    def __init__(self, logits):
        self.logits = torch.tensor(logits)
        self.count = torch.arange(len(self.logits))

    def __call__(self, images, ids):
        assert len(images) == len(ids) == len(self.logits)
        return Answers(self.logits, self.count, self.count > 1)


def test_answers_are_ordered_by_image_and_then_by_noise_sample():
    target = Target(Fixed([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [5.0, 0.0]]))

    found = by_label(target)(batch(2), torch.rand(2, 1, 2, 2), 2, SeedStream.EVALUATION)

    assert found.right.tolist() == [[True, False], [True, True]]
    assert found.steps.tolist() == [[0, 1], [2, 3]]
    assert found.steps.dtype == torch.int32
    assert found.capped.tolist() == [[False, False], [True, True]]
    assert found.answered.all()
    each = torch.nn.functional.cross_entropy(target.answer.logits, torch.zeros(4).long(), reduction="none")
    torch.testing.assert_close(found.loss, torch.stack([each[:2].mean(), each[2:].mean()]))


def test_what_is_no_answer_is_never_right_and_has_the_most_loss():
    nan, inf = float("nan"), float("inf")
    target = Target(Fixed([[nan, 0.0], [inf, 0.0], [-inf, 0.0], [0.0, -inf]]))

    found = by_label(target)(batch(4), torch.rand(4, 1, 2, 2), 1, SeedStream.EVALUATION)

    assert found.right[:, 0].tolist() == [False, False, False, True]
    assert found.answered[:, 0].tolist() == [False, False, True, True]
    assert found.loss.tolist() == [MOST_LOSS, MOST_LOSS, MOST_LOSS, 0.0]


def judged(rights, losses):
    """Whoever evaluates gives back one candidate's answers after another's, and notes what was asked."""
    asked, rights, losses = [], iter(rights), iter(losses)

    def evaluate(batch, images, noise_samples, stream):
        asked.append((images, noise_samples, stream))
        return replace(predictions(next(rights)), loss=torch.tensor(next(losses)))

    return evaluate, asked


def test_one_candidate_is_kept_unasked():
    evaluate, asked = judged([], [])
    (only,) = candidates = [torch.rand(2, 1, 2, 2)]

    assert lowest(evaluate, batch(2), candidates, noise_samples=3) is only
    assert asked == []


def test_candidates_are_chosen_by_draws_of_their_own():
    evaluate, asked = judged([[[1], [1]]] * 2, [[0.0, 0.0]] * 2)
    candidates = [torch.rand(2, 1, 2, 2) for _ in range(2)]

    lowest(evaluate, batch(2), candidates, noise_samples=3)

    assert [image is candidate for (image, _, _), candidate in zip(asked, candidates, strict=True)] == [True, True]
    assert {told[1:] for told in asked} == {(3, SeedStream.CHOICE)}


def test_of_candidates_that_are_right_as_often_the_one_of_more_loss_is_kept():
    rights = [[[1, 0], [1, 0], [1, 0], [0, 0]], [[0, 1], [0, 1], [1, 1], [0, 1]], [[1, 0], [1, 0], [0, 0], [0, 1]]]
    losses = [[1.0, 1.0, 1.0, 0.0], [2.0, 0.5, 9.0, 9.0], [1.5, 1.5, 0.0, 9.0]]
    evaluate, _ = judged(rights, losses)
    candidates = [torch.full((4, 1, 2, 2), float(k)) for k in range(3)]

    kept = lowest(evaluate, batch(4), candidates, noise_samples=2)

    assert kept[:, 0, 0, 0].tolist() == [1, 2, 2, 0]
    assert kept.shape == (4, 1, 2, 2)
