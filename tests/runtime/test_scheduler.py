import time
from dataclasses import replace

import pytest
import torch

from fastdef.runtime import Slots, Stats
from fastdef.runtime.pool import LoopRequest
from fastdef.runtime.scheduler import Scheduler
from tests.runtime.pools import Made, run


def countdown(images, steps, limits, delta):
    """A step whose image says how many steps it needs: its value is the loss, and each step takes 1 off."""
    loss = images[:, 0, 0, 0].clone()
    running = (loss > delta) & (steps < limits)
    return images - running.view(-1, 1, 1, 1).float(), steps + running, loss, running


def made(*sizes):
    return Made(lambda size: Slots(countdown, torch.zeros(size, 1, 1, 1)), sizes)


def starts(needs, *, limit=10_000, deadline=None):
    return [LoopRequest(key, torch.full((1, 1, 1), float(need)), limit, deadline) for key, need in enumerate(needs)]


@pytest.mark.parametrize("quantum", [None, 1, 5])
@pytest.mark.parametrize("sizes", [[1], [7], [1, 4, 16], [64]])
def test_every_image_leaves_once_with_its_own_number_of_steps(sizes, quantum):
    needs = torch.randint(0, 50, (40,), generator=torch.Generator().manual_seed(0)).tolist()

    ends = list(run(starts(needs), made(*sizes), 0.0, quantum=quantum))

    assert sorted(end.id for end in ends) == list(range(40))
    assert all(end.steps == needs[end.id] and end.loss == 0.0 and not end.expired for end in ends)


def test_an_image_leaves_as_soon_as_it_is_done():
    order = [end.id for end in run(starts([9, 1, 5, 1]), made(2), 0.0)]

    assert order == [1, 2, 3, 0] or order == [1, 2, 0, 3]


def test_a_limit_stops_an_image_that_would_never_finish():
    (stuck,) = run(starts([1e9], limit=12), made(1), 0.0)

    assert stuck.steps == 12
    assert stuck.loss > 0


def test_a_deadline_that_passed_in_the_queue_gives_no_slot_and_says_so():
    (end,) = run(starts([5], deadline=0.0), made(2), 0.0)

    assert (end.expired, end.started, end.steps) == (True, False, 0)


def test_a_passed_deadline_lets_an_image_out_unfinished(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("fastdef.runtime.scheduler.time.monotonic", lambda: next(clock) / 2)

    slow, quick = sorted(run(starts([1e6, 0], deadline=3.0), made(2), 0.0), key=lambda end: end.id)

    assert (slow.expired, slow.started) == (True, True)
    assert slow.image.item() == 1e6 - slow.steps
    assert not quick.expired  # it was done at the first look


def test_slow_images_do_not_hold_up_the_others():
    order = [end.id for end in run(starts([1000, 1000, *[3] * 100]), made(4), 0.0)]

    assert order[-2:] == [0, 1]


def looks_until(key, *, quantum):
    """Looks that an image of one step takes that comes after as many slow ones as there are slots."""
    scheduler = Scheduler(made(4), 0.0, Stats(), quantum=quantum)
    for start in starts([300] * 4 + [1]):
        scheduler.add(start)
    for look in range(1, 1000):
        if any(end.id == key for end in scheduler.advance()):
            return look
    raise AssertionError("never")


def test_with_a_quantum_slow_images_make_room():
    assert looks_until(4, quantum=None) > 300
    assert looks_until(4, quantum=10) < 15


def test_what_is_removed_is_forgotten_in_the_queue_and_in_a_slot():
    scheduler = Scheduler(made(2), 0.0, Stats())
    for start in starts([50, 50, 50, 1]):
        scheduler.add(start)
    scheduler.advance()

    scheduler.remove({0, 2})

    ends = []
    while len(scheduler):
        ends += scheduler.advance()
    assert [end.id for end in ends] == [3, 1]


def test_the_batch_shrinks_as_the_queue_drains():
    pool = made(1, 4, 16)

    list(run(starts([100, *[1] * 20]), pool, 0.0))

    assert set(pool.made) == {1, 16}


def test_the_batch_grows_when_more_come():
    pool = made(1, 4, 16)
    scheduler = Scheduler(pool, 0.0, Stats())
    first, *others = starts([30] * 10)
    scheduler.add(first)
    scheduler.advance()
    assert set(pool.made) == {1}

    for start in others:
        scheduler.add(start)
    ends = []
    while len(scheduler):
        ends += scheduler.advance()

    assert set(pool.made) >= {1, 16}
    assert [end.steps for end in ends] == [30] * 10


@pytest.mark.parametrize(("low", "high"), [(200, 500), (300, 301)])
def test_nearly_all_steps_are_useful(low, high):
    needs = torch.randint(low, high, (1024,), generator=torch.Generator().manual_seed(0)).tolist()
    stats = Stats()

    list(run(starts(needs), made(1, 4, 16, 64), 0.0, stats))

    assert stats.useful == sum(needs) + len(needs)
    assert stats.useful / stats.slot_steps > 0.95


def test_the_slots_that_shrank_grow_again_when_the_queue_fills_again():
    pool, stats = made(1, 4, 16), Stats()
    scheduler = Scheduler(pool, 0.0, stats)
    for start in starts([200, *[1] * 15]):
        scheduler.add(start)
    while len(scheduler) > 1:
        scheduler.advance()

    before, more = [], starts([500] * 16)[1:]
    for grown in (False, True):
        for start in more if grown else []:
            scheduler.add(start)
        evaluations = stats.slot_steps
        scheduler.advance()
        before.append(stats.slot_steps - evaluations)

    assert before[1] == 16 * before[0]  # from one slot to sixteen, as many steps a look


def test_a_deadline_that_has_not_come_cuts_nothing():
    far = time.monotonic() + 3600

    ends = list(run(starts([40, 0, 7, 25, 3], deadline=far), made(2), 0.0))

    assert sorted((end.id, end.steps) for end in ends) == [(0, 40), (1, 0), (2, 7), (3, 25), (4, 3)]
    assert not any(end.expired for end in ends)
    assert all(end.started for end in ends)


def test_useful_evaluations_are_counted_one_by_one():
    stats = Stats()

    list(run(starts([3, 0, 5]), made(1), 0.0, stats))

    assert stats.useful == 3 + 0 + 5 + 3
    assert stats.slot_steps >= stats.useful


def test_a_few_images_take_the_fewest_slots_that_hold_them():
    pool = made(1, 4, 16)

    list(run(starts([3, 3]), pool, 0.0))

    assert set(pool.made) == {4}


def test_room_is_for_as_many_as_would_have_a_slot_or_wait_for_their_first():
    plain, fair = (Scheduler(made(1, 4), 0.0, Stats(), quantum=quantum) for quantum in (None, 2))
    rooms = []
    for scheduler in (plain, fair):
        for start in starts([50, 50, 50]):
            scheduler.add(start)
        rooms.append(scheduler.room)
        scheduler.advance()
        rooms.append(scheduler.room)

    assert rooms == [1, 1, 1, 4]


def test_who_had_a_slot_and_made_room_takes_none_from_those_to_come():
    scheduler = Scheduler(made(1), 0.0, Stats(), quantum=1)
    for start in starts([50, 50]):
        scheduler.add(start)
        scheduler.advance()  # the second takes the first one's slot

    assert (len(scheduler), scheduler.room) == (2, 1)


def turns(needs, *, quantum, later=()):
    """Which image has the only slot, look by look; ``later`` comes after thirty."""

    class Seen(Slots):
        def advance(self):
            seen.append(self.ids[0])
            return super().advance()

    seen = []
    scheduler = Scheduler(
        Made(lambda size: Seen(countdown, torch.zeros(size, 1, 1, 1)), [1]), 0.0, Stats(), quantum=quantum
    )
    queue = starts([*needs, *later])
    for start in queue[: len(needs)]:
        scheduler.add(start)
    for look in range(60):
        if look == 30:
            for start in queue[len(needs) :]:
                scheduler.add(start)
        scheduler.advance()
    return seen


def test_images_take_turns_each_a_quantum_ahead_of_the_other():
    assert turns([100, 100], quantum=5)[:35] == [0] * 5 + [1] * 10 + [0] * 10 + [1] * 10


def test_who_had_long_makes_room_at_once_for_who_comes_late():
    assert turns([100], quantum=5, later=[100]) == [0] * 30 + [1] * 30


@pytest.mark.parametrize("looks", [1, 5])
def test_a_deadline_that_passes_while_an_image_waits_again_leaves_it_as_far_as_it_came(looks):
    scheduler = Scheduler(made(1), 0.0, Stats(), quantum=looks)
    first, second = starts([50, 50])
    scheduler.add(replace(first, deadline=time.monotonic() + 3600))
    for _ in range(looks):
        scheduler.advance()
    scheduler.add(second)
    scheduler.advance()  # the second has the slot
    (_, _, waits), *_ = scheduler._waiting
    scheduler.remove({first.id})
    scheduler.add(replace(waits, deadline=0.0))

    (end,) = scheduler.advance()

    assert (end.id, end.expired, end.started, end.steps) == (first.id, True, True, looks)


def test_the_one_that_had_most_makes_room():
    entered = []

    class Seen(Slots):
        def evict(self, slots):
            entered.append([self.ids[slot] for slot in slots])
            return super().evict(slots)

    scheduler = Scheduler(Made(lambda size: Seen(countdown, torch.zeros(size, 1, 1, 1)), [2]), 0.0, Stats(), quantum=3)
    for start in starts([100, 100, 100]):
        for _ in range(5):
            scheduler.advance()
        scheduler.add(start)
    scheduler.advance()

    assert entered == [[0]]
