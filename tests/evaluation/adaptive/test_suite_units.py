"""Units of work: a batch of images attacked and judged, kept, shared by ranks and joined to a line."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from fastdef import distributed
from fastdef.evaluation.adaptive import suite
from fastdef.evaluation.adaptive.attack_case import Attack, AttackCase, Kept, Predictions
from fastdef.evaluation.adaptive.journal import Unit
from fastdef.evaluation.adaptive.noise_seeds import SeedStream
from fastdef.evaluation.adaptive.suite import Progress
from tests.evaluation.adaptive.linear import SIDE


def test_a_unit_s_seed_stays_and_is_another_for_every_unit():
    """What was begun is gone on with by the same draws, in every version."""
    units = [(0, "0-clean", 0), (1, "0-clean", 0), (0, "0-clean", 1), (0, "3-APGD-CE", 0)]

    assert [suite._seed(*unit) for unit in units] == [3237851147, 1034825991, 1462108194, 2249666658]


def test_torch_s_generator_is_the_unit_s_and_then_as_it_was(batch):
    torch.manual_seed(1)
    before = torch.get_rng_state()

    with suite._seeded(batch):
        found = torch.rand(3)

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(batch.seed)))


def test_the_hardest_are_the_four_that_are_answered_right_least_often_and_of_equal_ones_the_first():
    right = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 1], [0, 0], [1, 0]]).bool()

    assert suite._hardest(right).tolist() == [1, 4, 2, 3]
    assert suite._hardest(right[:2]).tolist() == [1, 0]


@dataclass(frozen=True)
class Shift(Attack):
    """Adds a number to the images, and notes the batches."""

    by: float
    seen: list

    def __call__(self, batch):
        self.seen.append(batch)
        return [batch.images + self.by]


class Memory:
    """A journal in memory."""

    def __init__(self):
        self.units = {}

    def read(self, key, number):
        return self.units.get((key, number))

    def write(self, key, number, unit):
        self.units[key, number] = unit


def judge(asked, of=None):
    """Whoever evaluates: the n-th of a batch is right under n of its noise samples; notes what it was asked."""

    def evaluate(batch, images, noise_samples, stream):
        asked.append((images, noise_samples, stream))
        right = torch.arange(noise_samples) < torch.arange(len(images))[:, None]
        right = right[:of]
        steps = (batch.ids[:of, None] + torch.zeros_like(right)).int()
        return Predictions(right, steps, right, torch.ones(len(right)), torch.ones_like(right))

    return evaluate


def worker(six, tiny, *cases, journal=None, progress=lambda progress: None):
    return suite._Worker(journal or Memory(), six, tiny, 9, cases, progress)


def shifted(asked, *, seen=None, name="x", of=None, images=6, **more):
    craft = Shift(None, 0.5, [] if seen is None else seen)
    return AttackCase(3, name, craft, judge(asked, of), 0.1, images, 3, **more)


def test_a_unit_s_batch_has_its_images_labels_places_and_seed(six, tiny):
    seen = []
    case = shifted([], seen=seen)

    worker(six, tiny, case).work()

    assert [batch.ids.tolist() for batch in seen] == [[0, 1, 2, 3], [4, 5]]
    for number, batch in enumerate(seen):
        start, stop = int(batch.ids[0]), int(batch.ids[-1]) + 1
        assert torch.equal(batch.images, six.floats(start, stop))
        assert torch.equal(batch.labels, six.labels[start:stop])
        assert batch.seed == suite._seed(9, case.key, number)


def test_what_was_attacked_is_judged_by_the_evaluation_s_draws(six, tiny):
    asked = []

    worker(six, tiny, shifted(asked)).work()

    assert [(count, stream) for _, count, stream in asked] == [(3, SeedStream.EVALUATION)] * 2
    assert torch.equal(torch.cat([images for images, _, _ in asked]), six.floats(0, 6) + 0.5)


def test_of_several_candidates_one_is_chosen_by_the_case_s_noise_samples(six, tiny):
    asked = []
    case = shifted(asked, images=4)
    twice = replace(case, craft=Kept(None, case.key))
    journal = Memory()
    made = torch.cat([six.floats(0, 4)] * 2)
    nothing = torch.zeros(0)
    journal.units[case.key, 0] = Unit(None, made, nothing, nothing, 0.0, 0.0)

    worker(six, tiny, twice, journal=journal)._work(twice, 0, 0, 4)

    assert [(count, stream) for _, count, stream in asked] == [(3, SeedStream.CHOICE)] * 2 + [
        (3, SeedStream.EVALUATION)
    ]


def test_an_attack_and_its_evaluation_happen_in_the_case_s_view(six, tiny):
    log = []

    @contextmanager
    def view():
        log.append("in")
        yield
        log.append("out")

    class Logged(Shift):
        def __call__(self, batch):
            log.append(f"attack {torch.initial_seed() == batch.seed}")
            return super().__call__(batch)

    def evaluate(*arguments):
        log.append("evaluate")
        return judge([])(*arguments)

    case = AttackCase(3, "x", Logged(None, 0.5, []), evaluate, 0.1, 4, 3, view=view)

    worker(six, tiny, case).work()

    assert log == ["in", "attack True", "evaluate", "out"]


def test_a_unit_keeps_images_where_another_case_needs_them_and_the_hardest_always(six, tiny):
    kept, not_kept = (shifted([], keeps=keeps) for keeps in (True, False))

    whole, none = (worker(six, tiny, case)._work(case, 0, 0, 6) for case in (kept, not_kept))

    attacked = six.floats(0, 6) + 0.5
    assert torch.equal(whole.images, attacked)
    assert none.images.shape == (0, 1, SIDE, SIDE)
    for unit in (whole, none):
        assert unit.places.tolist() == [0, 1, 2, 3]
        assert torch.equal(unit.examples, attacked[:4])


def test_of_many_images_the_hardest_are_kept_as_well(six, tiny):
    many = replace(six, images=six.images.repeat(50, 1, 1, 1), labels=six.labels.repeat(50))
    case = shifted([], images=300)

    assert worker(many, tiny, case)._work(case, 0, 0, 300).places.tolist() == [0, 1, 2, 3]


def test_of_images_that_were_not_all_evaluated_none_is_the_hardest(six, tiny):
    case = shifted([], of=3)

    unit = worker(six, tiny, case)._work(case, 0, 0, 6)

    assert len(unit.places) == len(unit.examples) == 0
    assert len(unit.predictions.right) == 3


def test_attack_and_evaluation_are_timed(monkeypatch, six, tiny):
    case = shifted([])
    clock = iter([10.0, 13.0, 18.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    unit = worker(six, tiny, case)._work(case, 0, 0, 6)

    assert (unit.crafting, unit.evaluating) == (3.0, 5.0)


def test_another_case_s_images_are_those_of_the_same_batch(six, tiny):
    asked, journal = [], Memory()
    first = shifted([], name="first", keeps=True)
    second = AttackCase(3, "second", Kept(None, first.key), judge(asked), 0.1, 6, 3, needs=first.key)

    worker(six, tiny, first, second, journal=journal).work()

    assert torch.equal(torch.cat([images for images, _, _ in asked]), six.floats(0, 6) + 0.5)
    del journal.units[first.key, 1]
    del journal.units[second.key, 1]
    with pytest.raises(ValueError, match=f"a unit of {first.key} has gone from the folder: evaluate into another one"):
        worker(six, tiny, first, second, journal=journal)._work(second, 1, 4, 6)


def test_units_that_are_done_are_not_done_again(six, tiny):
    seen, progress, journal = [], [], Memory()
    case = shifted([], seen=seen)
    worker(six, tiny, case, journal=journal).work()
    del journal.units[case.key, 0]
    seen.clear()

    worker(six, tiny, case, journal=journal, progress=progress.append).work()

    assert [batch.ids.tolist() for batch in seen] == [[0, 1, 2, 3]]
    assert progress == [Progress("3 x", 4, 6, 4 / 6), Progress("3 x", 6, 6, 1.0)]


def test_a_line_is_of_all_units(six, tiny):
    case, journal = shifted([], images=100), Memory()
    one = worker(six, tiny, case, journal=journal)
    one.work()
    journal.units = {
        place: replace(unit, crafting=6.0 + place[1], evaluating=12.0 + place[1])
        for place, unit in journal.units.items()
    }

    line = one.line(case)

    assert line.case is case
    assert (line.score.count, line.score.noise_samples) == (6, 3)
    assert line.score.mean == pytest.approx((0 + 1 + 2 + 3 + 0 + 1) / 18)
    assert (line.crafting, line.evaluating) == (13 / 6, 25 / 6)
    assert line.places == [0, 4, 1, 5]
    assert torch.equal(line.examples, (six.floats(0, 6) + 0.5)[line.places])
    assert line.steps == [place for place in range(6) for _ in range(3)]


def test_a_line_of_which_nothing_could_be_evaluated_has_no_score(six, tiny):
    case = shifted([], of=0)
    one = worker(six, tiny, case)
    one.work()

    line = one.line(case)

    assert line.score is None
    assert line.places == line.steps == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_units_and_those_that_take_another_s_images_go_with_them(monkeypatch, six, tiny, ranks):
    first = shifted([], name="first", keeps=True)
    other = shifted([], name="other", images=2)
    second = AttackCase(3, "second", Kept(None, first.key), judge([]), 0.1, 6, 3, needs=first.key)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    done = {}
    shares = []

    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        journal, progress = Memory(), []
        worker(six, replace(tiny, batch=2), other, first, second, journal=journal, progress=progress.append).work()
        shares += progress[-1:]
        for unit in journal.units:
            assert unit not in done
            done[unit] = rank

    assert len(done) == 1 + 3 + 3
    assert {share.share for share in shares} == {1.0}
    assert [done[first.key, number] for number in range(3)] == [(1 + number) % ranks for number in range(3)]
    assert all(done[second.key, number] == done[first.key, number] for number in range(3))
    assert done[other.key, 0] == 0
