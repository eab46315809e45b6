"""A session over slots whose every step is known in advance: an image says how many steps it takes, and its answer."""

import math
import time
from itertools import count

import pytest
import torch

from fastdef.runtime import Slots, Stats
from fastdef.runtime.requests import Request
from fastdef.runtime.session import Program, Session
from tests.runtime.pools import Made, drain


def countdown(images, steps, limits, delta):
    """The first channel is the loss, and each step takes 1 off it."""
    loss = images[:, 0, 0, 0].clone()
    running = (loss > delta) & (steps < limits)
    taken = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1) * running.view(-1, 1, 1, 1)
    return images - taken, steps + running, loss, running


def image(need, answer=0.0):
    return torch.tensor([float(need), float(answer)]).view(2, 1, 1)


def log_probabilities(answer):
    """What ``classify`` says of an image whose second channel is ``answer``."""
    return torch.log_softmax(torch.tensor([answer, 0.0, -answer]), dim=0)


class Recorder:
    """The parts of a program, and what they were asked for."""

    def __init__(self, added=lambda loop: loop):
        self.added = added
        self.noised, self.classified, self.placed, self.drawn = [], [], [], count(100)

    def place(self, images):
        self.placed.append(images.shape)
        return images

    def noise(self, ids, loop, images):
        """As many more steps, and as much more in the answer."""
        self.noised.append((ids.tolist(), loop))
        return torch.full_like(images, float(self.added(loop)))

    def classify(self, images):
        self.classified.append(len(images))
        answers = images[:, 1, 0, 0]
        return torch.stack([answers, 0 * answers, -answers], dim=1)


def session_of(recorder=None, *, sizes=(4,), pool=None, classifies=True, stats=None, **options):
    recorder = recorder or Recorder()
    pool = pool or Made(lambda size: Slots(countdown, torch.zeros(size, 2, 1, 1)), sizes)
    options = {"delta": 0.0, "outer_loops": 1, "max_steps": 100, "classify_batch": 1, **options}
    classify = recorder.classify if classifies else None
    program = Program(recorder.place, recorder.noise, classify, lambda: next(recorder.drawn), **options)
    return Session(pool, program, stats or Stats())


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_requests_are_numbered_from_0_as_they_come():
    session = session_of()

    assert [session.add(Request(image(n))) for n in (3, 1, 2)] == [0, 1, 2]
    drain(session)
    assert session.add(Request(image(1))) == 3


def test_a_noise_id_is_drawn_where_a_request_has_none():
    recorder = Recorder()
    session = session_of(recorder)
    for noise_id in (None, 0, 7, None):
        session.add(Request(image(1), noise_id))

    results = drain(session)

    assert [results[n].noise_id for n in range(4)] == [100, 0, 7, 101]
    assert recorder.noised == [([100, 0, 7, 101], 0)]


@pytest.mark.parametrize("classify_batch", [1, 2, 3, 64])
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 4), (64,)])
@pytest.mark.parametrize("quantum", [None, 1])
def test_every_request_has_its_own_steps_image_and_answer(sizes, classify_batch, quantum):
    needs = [5, 0, 3, 9, 1, 1, 7, 2]
    session = session_of(sizes=sizes, classify_batch=classify_batch, quantum=quantum)
    for number, need in enumerate(needs):
        session.add(Request(image(need, answer=number)))

    results = drain(session)

    assert [results[n].steps for n in range(8)] == needs
    assert all(torch.equal(results[n].image, image(0, answer=n)) for n in range(8))
    assert all(torch.allclose(results[n].logits, log_probabilities(float(n))) for n in range(8))
    assert all(results[n].request_id == n and results[n].converged and results[n].started for n in range(8))
    assert not any(results[n].expired or results[n].invalid for n in range(8))


@pytest.mark.parametrize(("loops", "steps"), [(2, 2 + 3), (3, 2 + 3 + 4)])
def test_over_outer_loops_steps_are_added_and_probabilities_averaged(loops, steps):
    session = session_of(outer_loops=loops)
    session.add(Request(image(2, answer=0.5)))

    result = drain(session)[0]

    expected = torch.stack([log_probabilities(0.5 + loop) for loop in range(loops)]).exp().mean(0).log()
    assert result.steps == steps
    assert torch.allclose(result.logits, expected)
    assert torch.equal(result.image, image(0, answer=0.5))  # of the first
    assert result.converged


def test_every_outer_loop_has_noise_of_its_own():
    recorder = Recorder()
    session = session_of(recorder, outer_loops=3)
    session.add(Request(image(1), 5))
    drain(session)

    assert recorder.noised == [([5], 0), ([5], 1), ([5], 2)]


def test_the_loss_is_the_largest_of_the_outer_loops_and_one_that_did_not_converge_counts():
    session = session_of(outer_loops=3, max_steps=3)
    session.add(Request(image(2)))  # needs 2, 3 and 4

    result = drain(session)[0]

    assert (result.steps, result.loss, result.converged) == (2 + 3 + 3, 1.0, False)


def test_a_loss_at_the_threshold_is_converged():
    session = session_of(delta=2.0)
    session.add(Request(image(5)))

    result = drain(session)[0]

    assert (result.steps, result.loss, result.converged) == (3, 2.0, True)


@pytest.mark.parametrize(("own", "steps"), [(None, 6), (2, 2), (0, 0), (50, 9)])
def test_a_request_s_own_most_steps_go_before_the_session_s(own, steps):
    session = session_of(max_steps=6)
    session.add(Request(image(9), max_steps=own))

    result = drain(session)[0]

    assert (result.steps, result.loss) == (steps, 9 - steps)
    assert result.converged == (steps == 9)


def test_a_request_s_own_noise_goes_before_the_program_s_whoever_comes_with_it():
    session = session_of(outer_loops=2)
    session.add(Request(image(1), noise=image(4, answer=1.0)))
    session.add(Request(image(1)))
    session.add(Request(image(1), noise=image(6, answer=0.0)))

    results = drain(session)

    assert [results[n].steps for n in range(3)] == [5 + 5, 1 + 2, 7 + 7]
    assert torch.allclose(results[0].logits, log_probabilities(1.0))


def test_where_all_have_noise_of_their_own_none_is_drawn():
    recorder = Recorder()
    session = session_of(recorder)
    for need in (1, 2):
        session.add(Request(image(0), noise=image(need)))

    results = drain(session)

    assert [results[n].steps for n in range(2)] == [1, 2]
    assert recorder.noised == []


def test_as_many_are_noised_together_as_there_are_slots():
    recorder = Recorder()
    session = session_of(recorder, sizes=(1, 3))
    for number in range(7):
        session.add(Request(image(90), number))

    session.step()
    first = list(recorder.noised)
    drain(session)

    assert session.chunk == 3
    assert first == [([0, 1, 2], 0)]  # the others wait for slots
    assert [ids for ids, _ in recorder.noised] == [[0, 1, 2], [3, 4, 5], [6]]


def test_none_is_noised_before_there_is_room_for_one():
    recorder = Recorder()
    session = session_of(recorder, sizes=(3,))
    session.add(Request(image(90), 0))
    session.step()
    for number in range(1, 8):
        session.add(Request(image(90), number))

    session.step()

    assert [ids for ids, _ in recorder.noised] == [[0], [1, 2, 3]]  # 3 waits, to be the first


@pytest.mark.parametrize(("loops", "most"), [(1, 4), (2, 2), (3, 2)])
def test_there_is_capacity_while_one_more_would_have_a_slot(loops, most):
    session = session_of(outer_loops=loops)

    added = 0
    while session.has_capacity:
        session.add(Request(image(5)))
        added += 1

    assert added == most


def test_what_is_smoothed_waits_to_be_classified_while_as_many_are_to_come():
    recorder = Recorder()
    session = session_of(recorder, sizes=(5,), classify_batch=3, max_steps=1000)
    for need in (1, 50, 100, 150, 200):
        session.add(Request(image(need)))

    drain(session)

    assert recorder.classified == [3, 1, 1]


def test_the_unfinished_are_counted():
    session = session_of(classify_batch=1)
    session.add(Request(image(1)))
    session.add(Request(image(50)))

    assert session.unfinished == 2
    while not session.step():
        assert session.unfinished == 2
    assert session.unfinished == 1


def test_without_a_classifier_there_are_no_logits():
    session = session_of(classifies=False, outer_loops=2)
    session.add(Request(image(1)))
    session.add(Request(image(1), valid=False))

    results = drain(session)

    assert [results[n].logits.shape for n in (0, 1)] == [(0,), (0,)]
    assert (results[0].steps, results[1].steps) == (3, 0)


def test_a_deadline_that_is_now_has_not_passed(clock):
    session = session_of()
    session.add(Request(image(1), deadline=1000.0))
    session.add(Request(image(1), deadline=999.5))

    results = drain(session)

    assert [results[n].expired for n in (0, 1)] == [False, True]
    assert [results[n].started for n in (0, 1)] == [True, False]


def test_each_deadline_in_the_queue_is_seen_when_it_passes(clock):
    session = session_of(sizes=(1,))
    session.add(Request(image(1000)))
    session.step()  # the slot is taken
    for deadline in (1020.0, 1010.0, None):
        session.add(Request(image(1), deadline=deadline))
    refused = []
    for now in (1005.0, 1011.0, 1012.0, 1021.0, 1022.0):
        clock[0] = now
        refused.append([result.request_id for result in session.step()])

    assert refused == [[], [2], [], [1], []]
    assert session.unfinished == 2


def test_a_deadline_that_passes_with_a_slot_ends_it_where_it_is(clock):
    session = session_of(max_steps=1000)
    session.add(Request(image(900), deadline=1001.0))
    session.step()
    clock[0] = 1002.0

    result = drain(session)[0]

    assert (result.expired, result.started, result.converged) == (True, True, False)
    assert 0 < result.steps < 900
    assert torch.allclose(result.logits, log_probabilities(0.0))


def test_one_outer_loop_that_is_late_is_enough_to_be_expired_and_the_others_answer(clock):
    session = session_of(sizes=(1,), outer_loops=2, max_steps=1000)
    session.add(Request(image(1, answer=2.0), deadline=1001.0))
    session.step()
    clock[0] = 1002.0

    result = drain(session)[0]

    assert (result.expired, result.started, result.converged) == (True, True, False)
    assert torch.allclose(result.logits, log_probabilities(2.0))  # of the loop that had a slot alone


@pytest.mark.parametrize(("before", "asked"), [(False, [1]), (True, [1])])
def test_one_without_a_slot_has_nan_for_every_class_and_the_classes_are_asked_for_once(before, asked):
    recorder = Recorder()
    session = session_of(recorder)
    if before:
        session.add(Request(image(1)))
        drain(session)
    for _ in range(2):
        session.add(Request(image(3), valid=False))

    results = session.step()

    assert len(results) == 2
    for result in results:
        assert result.logits.shape == (3,)
        assert result.logits.isnan().all()
        assert math.isnan(result.loss)
        assert (result.steps, result.invalid, result.started, result.expired) == (0, True, False, False)
        assert not result.converged
        assert torch.equal(result.image, image(3))
    assert recorder.classified == asked


def test_a_late_one_without_a_slot_is_expired_and_not_invalid(clock):
    session = session_of(outer_loops=3)
    session.add(Request(image(3), deadline=999.0))

    (result,) = session.step()

    assert (result.expired, result.started, result.invalid, result.converged) == (True, False, False, False)
    assert (result.steps, result.logits.shape) == (0, (3,))


def test_images_are_placed_before_they_are_smoothed():
    recorder = Recorder()
    session = session_of(recorder)
    session.add(Request(image(1)))
    session.add(Request(image(1), noise=image(1)))
    session.add(Request(image(1), valid=False))

    drain(session)

    assert recorder.placed == [(1, 2, 1, 1), (2, 2, 1, 1), (2, 1, 1)]


@pytest.mark.parametrize("loops", [1, 2])
@pytest.mark.parametrize("withdrawn", [0, 1, 3, 4])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_is_withdrawn_has_no_result_wherever_it_is(loops, withdrawn, steps):
    needs = [40, 30, 50, 35, 45]
    session = session_of(sizes=(2,), outer_loops=loops, classify_batch=2)
    for number, need in enumerate(needs):
        session.add(Request(image(need, answer=number)))
    for _ in range(steps):
        session.step()

    session.cancel(withdrawn)
    results = drain(session)

    rest = [n for n in range(5) if n != withdrawn]
    assert sorted(results) == rest
    assert [results[n].steps for n in rest] == [loops * needs[n] + loops - 1 for n in rest]


@pytest.mark.parametrize("request_id", [0, 1])
def test_what_is_withdrawn_between_smoothing_and_classifying_has_no_result(request_id):
    session = session_of(sizes=(16,), outer_loops=2, classify_batch=64, max_steps=1000)
    for need in (1, 1, 300, 400, 500):
        session.add(Request(image(need)))
    while len(session._smoothed) < 4:
        session.step()

    session.cancel(request_id)

    assert sorted(drain(session)) == sorted({0, 1, 2, 3, 4} - {request_id})


def test_withdrawing_the_last_gives_the_slots_back():
    pool = Made(lambda size: Slots(countdown, torch.zeros(size, 2, 1, 1)), (2,))
    session = session_of(pool=pool)
    session.add(Request(image(50)))
    session.step()

    session.cancel(7)
    held = list(pool.released)
    session.cancel(0)

    assert (held, pool.released) == ([], [2])
    assert session.unfinished == 0


def test_the_slots_are_held_while_one_is_unfinished_and_go_back_then():
    pool = Made(lambda size: Slots(countdown, torch.zeros(size, 2, 1, 1)), (2,))
    session = session_of(pool=pool)
    session.add(Request(image(1)))
    session.add(Request(image(40)))

    while not session.step():
        pass
    held = list(pool.released)
    drain(session)

    assert (held, pool.released) == ([], [2])


def test_on_leaving_what_is_unfinished_is_dropped_and_the_slots_go_back():
    pool = Made(lambda size: Slots(countdown, torch.zeros(size, 2, 1, 1)), (2,))

    with session_of(pool=pool) as session:
        for need in (50, 60, 70):
            session.add(Request(image(need)))
        session.step()

    assert session.unfinished == 0
    assert pool.released == [2]
    session.add(Request(image(2)))
    assert drain(session)[3].steps == 2


class Short(Made):
    """Slots that run out of memory in their first steps while there are more than ``room``."""

    def __init__(self, sizes, room, after):
        super().__init__(self._slots, sizes)
        self.room, self.after = room, after

    def _slots(self, size):
        slots, steps = Slots(countdown, torch.zeros(size, 2, 1, 1)), count()
        advance = slots.advance

        def short():
            if size > self.room and next(steps) == self.after:
                raise torch.OutOfMemoryError("simulated")
            return advance()

        slots.advance = short
        return slots

    def halve(self):
        self.sizes = self.sizes[:-1]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_out_of_memory_it_begins_anew_with_half_the_slots(after):
    session = session_of(pool=Short((1, 2, 4), room=1, after=after), outer_loops=2, classify_batch=1)
    for need in (30, 1, 20):
        session.add(Request(image(need)))

    results = drain(session)

    assert session.chunk == 1
    assert [results[n].steps for n in range(3)] == [61, 3, 41]


def test_out_of_memory_what_an_outer_loop_ended_with_is_forgotten():
    recorder = Recorder(lambda loop: -60 * loop)  # the second ends while the first is under way
    session = session_of(recorder, pool=Short((1, 4), room=1, after=2), outer_loops=2, max_steps=1000)
    for need in (61, 400):
        session.add(Request(image(need)))

    results = drain(session)

    assert session.chunk == 1
    assert [results[n].steps for n in (0, 1)] == [61 + 1, 400 + 340]


def test_where_one_slot_is_too_much_the_request_is_still_there():
    session = session_of(pool=Short((1,), room=0, after=0))
    session.add(Request(image(3)))

    with pytest.raises(torch.OutOfMemoryError, match="simulated"):
        session.step()

    assert session.unfinished == 1


def test_the_work_is_counted():
    stats = Stats()
    session = session_of(sizes=(2,), stats=stats)
    for need in (3, 5):
        session.add(Request(image(need)))

    drain(session)

    assert stats.useful == 3 + 1 + 5 + 1
    assert stats.slot_steps >= stats.useful
