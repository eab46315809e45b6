import threading
import time

import pytest
import torch

from fastdef.serving import Batcher, Full

SHAPE = (1, 12, 12)


def test_an_answer_is_the_defense_s_whatever_came_beside_it(batcher, defense, images):
    replies = [batcher.submit(image, id=number) for number, image in enumerate(images)]

    found = [reply.result(60) for reply in replies]

    expected = defense.defend(images)
    torch.testing.assert_close(torch.stack([r.probabilities for r in found]), expected.logits.exp())
    assert [reply.steps for reply in found] == expected.steps.tolist()
    assert [reply.id for reply in found] == list(range(24))
    assert all(reply.converged for reply in found)


def test_outer_loops_are_averaged(defense, images):
    defense.outer_loops = 3
    batcher = Batcher(defense, SHAPE)

    found = [batcher.submit(image, id=number) for number, image in enumerate(images[:5])]

    expected = defense.defend(images[:5])
    torch.testing.assert_close(torch.stack([r.result(60).probabilities for r in found]), expected.logits.exp())
    assert [r.result().steps for r in found] == expected.steps.tolist()
    batcher.close()


def test_ids_are_the_system_s_and_no_two_alike(batcher, images):
    ids = {batcher.submit(images[0]).result(60).id for _ in range(8)}

    assert len(ids) == 8
    assert max(ids) > 1 << 40


def test_an_image_that_takes_for_ever_holds_up_nobody(defense, images):
    """One image is so rough that no number of steps would do; the others pass it by, and its deadline ends it."""
    noise = defense.noise
    checker = (torch.arange(144).view(1, 12, 12) % 2) * 1e6
    defense.noise = lambda ids, loop, like: noise(ids, loop, like) + checker * (ids == 99).view(-1, 1, 1, 1)
    defense.max_steps = 1 << 30
    batcher = Batcher(defense, SHAPE)

    hard = batcher.submit(images[5], id=99, deadline=4.0)
    easy = [batcher.submit(image, id=number) for number, image in enumerate(images[:4])]
    replies = [reply.result(60) for reply in easy]

    assert not hard.done()
    assert all(reply.converged for reply in replies)
    reply = hard.result(60)
    assert reply.expired
    assert not reply.converged
    assert reply.steps > max(reply.steps for reply in replies)
    batcher.close()


def test_a_full_queue_says_when_to_come_again(defense, images):
    batcher = Batcher(defense, SHAPE, queue_size=2)
    gate = threading.Event()
    noise = defense.noise
    defense.noise = lambda *given: gate.wait(60) and noise(*given)
    accepted = [batcher.submit(images[0])]
    while batcher.waiting:
        time.sleep(0.01)
    accepted += [batcher.submit(images[1]), batcher.submit(images[2])]

    with pytest.raises(Full) as full:
        batcher.submit(images[3])
    gate.set()

    assert full.value.seconds >= 1
    assert all(reply.result(60).steps > 0 for reply in accepted)
    batcher.close()


def test_what_was_accepted_is_answered_before_the_end(defense, images):
    batcher = Batcher(defense, SHAPE)
    replies = [batcher.submit(image) for image in images]

    batcher.close()
    batcher.close()

    assert all(reply.done() for reply in replies)
    assert not batcher.alive
    with pytest.raises(RuntimeError, match="shutting down"):
        batcher.submit(images[0])


def test_a_failure_is_told_to_those_it_struck_and_the_next_are_answered(batcher, defense, images):
    model = defense.model.forward
    defense.model.forward = lambda x: (_ for _ in ()).throw(RuntimeError("broken"))

    with pytest.raises(RuntimeError, match="broken"):
        batcher.submit(images[0]).result(60)
    defense.model.forward = model

    assert batcher.submit(images[0]).result(60).steps > 0
    assert batcher.alive


def test_out_of_memory_it_goes_on_with_fewer_slots_and_loses_nobody(defense, images, monkeypatch):
    make = defense._engine._make

    def allocate(key):
        if key[0][0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return make(key)

    monkeypatch.setattr(defense._engine, "_make", allocate)
    monkeypatch.setattr("warnings.warn", lambda *told, **more: None)
    batcher = Batcher(defense, SHAPE)

    found = [batcher.submit(image, id=number) for number, image in enumerate(images)]

    steps = [reply.result(60).steps for reply in found]
    assert steps == defense.defend(images).steps.tolist()
    assert defense.slots == 2
    batcher.close()


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
def test_bad_input_is_refused_when_it_comes(batcher, image, options, message):
    with pytest.raises(ValueError, match=message):
        batcher.submit(image, **options)
