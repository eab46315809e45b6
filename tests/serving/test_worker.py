import asyncio
import random
import subprocess
import sys
import threading
import time

import pytest
import torch

from fastdef.defense import Session
from fastdef.serving import Closed, Full, Worker
from tests.waiting import wait_until

SHAPE = (1, 12, 12)


def test_an_answer_is_the_defense_s_whatever_came_beside_it(worker, defense, images):
    submitted = [worker.submit(image, id=number) for number, image in enumerate(images)]

    replies = [reply.result(60) for reply in submitted]

    expected = defense.defend(images)
    torch.testing.assert_close(torch.stack([r.probabilities for r in replies]), expected.logits.exp())
    assert [reply.steps for reply in replies] == expected.steps.tolist()
    assert [reply.id for reply in replies] == list(range(24))
    assert all(reply.converged and reply.started for reply in replies)


def test_outer_loops_are_averaged(defense, images):
    defense.outer_loops = 3
    with Worker(defense, SHAPE) as worker:
        submitted = [worker.submit(image, id=number) for number, image in enumerate(images[:5])]
        replies = [reply.result(60) for reply in submitted]

    expected = defense.defend(images[:5])
    torch.testing.assert_close(torch.stack([r.probabilities for r in replies]), expected.logits.exp())
    assert [r.steps for r in replies] == expected.steps.tolist()


def test_ids_are_the_system_s_and_no_two_alike(worker, images):
    ids = {worker.submit(images[0]).result(60).id for _ in range(8)}

    assert len(ids) == 8
    assert max(ids) > 1 << 40


def test_an_image_that_takes_for_ever_holds_up_nobody(defense, images, rough):
    """The others pass it by, and a deadline ends it."""
    with Worker(defense, SHAPE) as worker:
        hard = worker.submit(images[5], id=rough, deadline=600.0)
        easy = [worker.submit(image, id=number) for number, image in enumerate(images[:4])]
        replies = [reply.result(60) for reply in easy]
        reply = worker.submit(images[5], id=rough, deadline=3.0).result(60)

        assert not hard.done()
        hard.cancel()

    assert all(reply.converged for reply in replies)
    assert reply.expired
    assert not reply.converged
    assert reply.steps > max(reply.steps for reply in replies)


def test_slots_full_of_images_that_take_for_ever_are_shared(defense, images, rough):
    """Twice as many rough images as there are slots, for minutes: a smooth one has its turn long before."""
    with Worker(defense, SHAPE) as worker:
        hard = [worker.submit(images[5], id=rough, deadline=600.0) for _ in range(2 * defense.slots)]
        reply = worker.submit(images[0], id=0, deadline=300.0).result(300)

        assert not any(slow.done() for slow in hard)
        for slow in hard:
            slow.cancel()

    assert reply.converged
    assert reply.steps == defense.defend(images[:1]).steps[0]


def test_a_deadline_counts_from_when_the_image_came(defense, images):
    """What waits for a device longer than it may has not begun, and says so."""
    gate, noise = threading.Event(), defense.noise
    defense.noise = lambda *given: gate.wait(60) and noise(*given)
    with Worker(defense, SHAPE) as worker:
        first = worker.submit(images[0])
        wait_until(lambda: not worker.waiting)
        late = worker.submit(images[1], deadline=0.05)
        time.sleep(0.1)
        gate.set()

        assert first.result(60).converged
        reply = late.result(60)

    assert not reply.started
    assert reply.expired
    assert not reply.converged
    assert reply.steps == 0
    assert reply.probabilities.isnan().all()


def test_a_full_queue_says_when_to_come_again(defense, images):
    gate, noise = threading.Event(), defense.noise
    defense.noise = lambda *given: gate.wait(60) and noise(*given)
    with Worker(defense, SHAPE, queue_size=2) as worker:
        accepted = [worker.submit(images[0]) for _ in range(defense.slots + 2)]

        with pytest.raises(Full) as full:
            worker.submit(images[3])
        gate.set()

        assert full.value.seconds >= 1
        assert all(reply.result(60).steps > 0 for reply in accepted)
        assert worker.submit(images[3]).result(60).steps > 0


@pytest.mark.parametrize("waiting", [0, 12])
def test_what_is_cancelled_is_withdrawn_from_queue_and_slot(defense, images, rough, waiting, monkeypatch):
    """A hundred that would take for ever, cancelled: the next one does not wait for them."""
    sessions, make = [], defense.session
    monkeypatch.setattr(defense, "session", lambda **given: sessions.append(make(**given)) or sessions[-1])
    with Worker(defense, SHAPE, queue_size=128) as worker:
        for _ in range(100):
            worker.submit(images[5], id=rough, deadline=600.0).cancel()
        hard = [worker.submit(images[5], id=rough, deadline=600.0) for _ in range(waiting)]
        wait_until(lambda: not waiting or (sessions and sessions[0].unfinished >= defense.slots))
        for reply in hard:
            assert reply.cancel()

        reply = worker.submit(images[0], id=0).result(60)
        wait_until(lambda: not worker._jobs and not sessions[0].unfinished)

    assert reply.steps == defense.defend(images[:1]).steps[0]
    assert worker._unanswered == 0


def test_a_submission_that_is_cancelled_twice_harms_neither_the_thread_nor_its_neighbours(worker, defense, images):
    async def impatient(image):
        reply = asyncio.wrap_future(worker.submit(image, id=5))
        waiting = asyncio.ensure_future(asyncio.wait_for(reply, 0.001))
        await asyncio.sleep(random.Random(0).uniform(0, 0.002))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        reply.cancel()

    async def all_of_them():
        neighbours = [asyncio.wrap_future(worker.submit(image, id=n)) for n, image in enumerate(images[:8])]
        await asyncio.gather(*[impatient(image) for image in images])
        return await asyncio.gather(*neighbours)

    replies = asyncio.run(all_of_them())

    assert [reply.steps for reply in replies] == defense.defend(images[:8]).steps.tolist()
    assert worker.alive
    assert worker.submit(images[0]).result(60).converged


def test_what_was_accepted_is_answered_before_the_end(defense, images):
    worker = Worker(defense, SHAPE)
    replies = [worker.submit(image) for image in images]

    worker.close()
    worker.close()

    assert all(reply.result(0).converged for reply in replies)
    assert not worker.alive
    with pytest.raises(Closed, match="shutting down"):
        worker.submit(images[0])


def test_what_is_not_done_within_the_grace_fails(defense, images, rough):
    worker = Worker(defense, SHAPE)
    hard = worker.submit(images[5], id=rough, deadline=600.0)

    worker.close(grace=0.2)

    assert not worker.alive
    with pytest.raises(Closed, match="shut down before"):
        hard.result(0)


def test_a_failure_is_raised_for_those_it_struck_and_the_next_are_answered(worker, defense, images):
    model = defense.model.forward
    defense.model.forward = lambda x: (_ for _ in ()).throw(RuntimeError("broken"))

    with pytest.raises(RuntimeError, match="broken"):
        worker.submit(images[0]).result(60)
    defense.model.forward = model

    assert worker.submit(images[0]).result(60).steps > 0
    assert worker.alive


def test_a_program_that_raises_before_it_closes_the_worker_still_ends(tmp_path):
    program = """
import torch
from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet
from fastdef.serving import Worker
defense = ActiveDefense(WideResNet(10, 1).eval(), delta=1e-9, compile=False, max_steps=1 << 30)
Worker(defense, (3, 8, 8)).submit(torch.rand(3, 8, 8), deadline=600.0)
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 3


def test_out_of_memory_it_goes_on_with_fewer_slots_and_loses_nobody(defense, images, monkeypatch):
    make = defense._steps._make

    def allocate(key):
        if key[0][0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return make(key)

    monkeypatch.setattr(defense._steps, "_make", allocate)
    monkeypatch.setattr("warnings.warn", lambda *given, **more: None)
    with Worker(defense, SHAPE) as worker:
        submitted = [worker.submit(image, id=number) for number, image in enumerate(images)]
        steps = [reply.result(60).steps for reply in submitted]

    assert steps == defense.defend(images).steps.tolist()
    assert defense.slots == 2


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(1, 12, 13), {}, r"shape \(1, 12, 12\), got \(1, 12, 13\)"),
        (torch.full(SHAPE, torch.nan), {}, "NaN or Inf"),
        (torch.full(SHAPE, 2.0), {}, r"in \[0, 1\]"),
        (torch.zeros(SHAPE), {"id": -1}, "an id from 0 up"),
        (torch.zeros(SHAPE), {"deadline": 0.0}, "a deadline above 0"),
        (torch.zeros(SHAPE), {"deadline": float("nan")}, "a deadline above 0"),
    ],
)
def test_bad_input_is_refused_when_it_comes(worker, image, options, message):
    with pytest.raises(ValueError, match=message):
        worker.submit(image, **options)


def test_room_is_for_the_slots_and_the_queue_and_comes_back_with_each_answer(held, defense, images):
    worker, gate = held  # with a queue of one
    waiting, replies = [worker.waiting], []
    for _ in range(9):
        replies.append(worker.submit(images[0]))
        waiting.append(worker.waiting)

    assert worker.capacity == 9
    assert waiting == [0] * 9 + [1]
    with pytest.raises(Full) as full:
        worker.submit(images[0])
    assert full.value.seconds == 1.0  # at least
    assert "try again in 1 s" in str(full.value)

    gate.set()
    assert all(reply.result(60).started for reply in replies)
    wait_until(lambda: worker.waiting == 0 and worker._unanswered == 0, 5)
    gate.clear()
    for _ in range(9):
        worker.submit(images[0])
    with pytest.raises(Full):
        worker.submit(images[0])


def test_with_fewer_slots_than_before_nobody_is_let_in_beyond_the_room(held, defense, images, monkeypatch):
    worker, _ = held
    for _ in range(9):
        worker.submit(images[0])

    monkeypatch.setattr(type(defense), "slots", 4)  # as after running out of memory

    with pytest.raises(Full):
        worker.submit(images[0])


def test_a_full_queue_is_for_as_long_as_images_took_of_late(held, images, monkeypatch):
    worker, gate = held
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    slow = worker.submit(images[0], deadline=float("inf"))
    now += 100.0
    gate.set()

    assert slow.result(60).seconds == 100.0

    gate.clear()
    for _ in range(9):
        worker.submit(images[0])
    with pytest.raises(Full) as full:
        worker.submit(images[0])
    assert full.value.seconds == pytest.approx(0.9 * 0.1 + 0.1 * 100.0)  # a tenth of it is new


@pytest.fixture
def added(monkeypatch):
    """What sessions are asked for."""
    requests, add = [], Session.add

    def record(session, request):
        requests.append(request)
        return add(session, request)

    monkeypatch.setattr(Session, "add", record)
    return requests


@pytest.mark.parametrize(
    ("given", "seconds"), [({}, 20.0), ({"deadline": 5.0}, 5.0), ({"deadline": 0.5}, 0.5), ({"deadline": 50.0}, 20.0)]
)
def test_an_image_has_the_seconds_that_it_asks_for_and_at_most_the_longest(defense, images, added, given, seconds):
    with Worker(defense, SHAPE, longest=20.0) as worker:
        begin = time.monotonic()
        reply = worker.submit(images[0], **given)
        end = time.monotonic()
        reply.result(60)

    assert begin + seconds <= added[0].deadline <= end + seconds


def test_an_infinite_deadline_is_none_and_what_warms_has_one(worker, images, added):
    worker.warm()
    worker.submit(images[0], deadline=float("inf")).result(60)

    assert [request.deadline for request in added] == [None, None]
    assert not added[0].image.any()


@pytest.mark.parametrize("id", [0, 1, (1 << 62) - 1])
def test_an_id_is_kept_as_it_was_given(worker, images, id):
    assert worker.submit(images[0], id=id).result(60).id == id


@pytest.mark.parametrize("given", [1 << 62, 1 << 63])
def test_an_id_of_more_bits_is_refused_and_none_is_drawn(worker, images, monkeypatch, given):
    monkeypatch.setattr("secrets.randbits", lambda bits: (1 << bits) - 1)

    with pytest.raises(ValueError, match="of 62 bits"):
        worker.submit(images[0], id=given)
    assert worker.submit(images[0]).result(60).id == (1 << 62) - 1


@pytest.mark.parametrize("shape", [(1, 12, 11), (1, 12), (1, 1, 12, 12), (2, 12, 12)])
def test_an_image_of_any_other_shape_is_refused(worker, shape):
    with pytest.raises(ValueError, match="needs an image of shape"):
        worker.submit(torch.zeros(shape))


@pytest.mark.parametrize("deadline", [-0.5, -5.0])
def test_a_deadline_that_has_passed_is_refused(worker, images, deadline):
    with pytest.raises(ValueError, match="a deadline above 0"):
        worker.submit(images[0], deadline=deadline)


def test_an_image_that_is_done_waits_for_none_that_is_not(defense, images, rough):
    """Neither in its slot nor for a classifier that could take them together."""
    with Worker(defense, SHAPE) as worker:
        hard = [worker.submit(images[5], id=rough, deadline=600.0) for _ in range(2)]
        easy = worker.submit(images[0], id=0).result(60)

        assert not any(slow.done() for slow in hard)
        for slow in hard:
            slow.cancel()

    assert easy.converged


def test_a_worker_whose_thread_has_ended_is_not_alive(defense, monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda error: None)
    defense.session = None
    worker = Worker(defense, SHAPE)

    wait_until(lambda: not worker.alive)


def test_a_program_that_ends_waits_for_no_image(defense, images, rough):
    worker = Worker(defense, SHAPE)
    hard = worker.submit(images[5], id=rough, deadline=600.0)

    assert worker._thread.daemon
    worker._abandon()  # as Python does when it ends

    assert not worker.alive
    with pytest.raises(Closed, match="shut down before"):
        hard.result(0)
    worker.close()
