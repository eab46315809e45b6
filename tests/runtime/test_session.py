import copy
import time

import pytest
import torch

from fastdef.defense import ActiveDefense, Request
from tests.runtime.pools import drain


def starved(defense, monkeypatch, room):
    """An allocator that has no room for more than ``room`` slots."""
    make = defense._steps._make

    def allocate(key):
        if key[0][0] > room:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return make(key)

    monkeypatch.setattr(defense._steps, "_make", allocate)


def same(defense, results, batch):
    """Whether single results are a batch's to the bit."""
    rows = zip(results, batch.logits, batch.images, batch.steps.tolist(), strict=True)
    return all(
        torch.equal(one.logits, logits) and torch.equal(one.image, image) and one.steps == steps
        for one, logits, image, steps in rows
    )


@pytest.mark.parametrize("loops", [1, 3])
def test_batch_stream_and_session_are_bitwise_equal_when_deterministic(defense_for, model, images, loops):
    defense = defense_for(model, images, deterministic=True, outer_loops=loops)
    ids = torch.arange(24) * 7

    batch = defense.defend(images, ids=ids)
    stream = list(defense.stream(images, ids=ids.tolist()))
    session = defense.session(classify_batch=1, quantum=3)
    numbers = [session.add(Request(image, noise_id)) for image, noise_id in zip(images, ids.tolist(), strict=True)]
    alone = drain(session)

    assert same(defense, stream, batch)
    assert same(defense, [alone[number] for number in numbers], batch)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("way", ["defend", "smooth", "stream", "session"])
def test_out_of_memory_the_slots_are_halved_and_every_image_is_answered(
    defense_for, model, images, monkeypatch, deterministic, way
):
    defense = defense_for(model, images, slots=8, deterministic=deterministic)
    expected = defense_for(model, images, slots=2).smooth(images)
    starved(defense, monkeypatch, room=2)
    ways = {
        "defend": lambda: defense.defend(images).steps.tolist(),
        "smooth": lambda: defense.smooth(images).steps.tolist(),
        "stream": lambda: [result.steps for result in defense.stream(images)],
        "session": lambda: by_session(defense, images),
    }

    with pytest.warns(RuntimeWarning, match="out of memory: going on with") as warned:
        steps = ways[way]()
    again = ways[way]()

    assert defense.slots == 2
    assert len(warned) == 2  # 4, and 2; and never again
    assert steps == again == expected.steps.tolist()


def by_session(defense, images):
    session = defense.session(quantum=2)
    for number, image in enumerate(images):
        assert session.add(Request(image, number)) == number
    results = drain(session)
    return [results[number].steps for number in range(len(images))]


def test_out_of_memory_in_the_midst_of_a_stream_nothing_is_lost_or_answered_twice(
    defense_for, model, images, monkeypatch
):
    defense = defense_for(model, images, slots=8)
    expected = defense_for(model, images, slots=2).defend(images)
    make, calls = defense._steps._make, []

    def failing(key):
        slots = make(key)
        step = slots.advance

        def once():
            calls.append(1)
            if len(calls) == 12:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return step()

        slots.advance = once
        return slots

    monkeypatch.setattr(defense._steps, "_make", failing)

    with pytest.warns(RuntimeWarning, match="4 slots"):
        results = list(defense.stream(iter(images)))

    assert [result.steps for result in results] == expected.steps.tolist()
    torch.testing.assert_close(torch.stack([r.logits for r in results]), expected.logits, rtol=1e-4, atol=1e-4)


def test_where_one_slot_is_too_much_the_error_is_the_memory_s(defense_for, model, images, monkeypatch):
    defense = defense_for(model, images, slots=2)
    starved(defense, monkeypatch, room=0)

    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError, match="simulated"):
        defense.defend(images)


def test_what_is_withdrawn_has_no_result_and_the_others_have_theirs(defense_for, model, images):
    defense = defense_for(model, images, slots=4, deterministic=True)
    expected = defense.defend(images)
    session = defense.session()
    for number, image in enumerate(images):
        session.add(Request(image, number))
    session.step()  # some have a slot, some wait

    for number in (0, 3, 10, 23):
        session.cancel(number)
    session.cancel(99)
    results = drain(session)

    assert sorted(results) == sorted(set(range(24)) - {0, 3, 10, 23})
    assert all(torch.equal(result.logits, expected.logits[number]) for number, result in results.items())


def test_a_deadline_that_passes_before_a_slot_is_no_answer(defense_for, model, images):
    defense = defense_for(model, images, slots=2, outer_loops=2)
    session = defense.session()
    late = session.add(Request(images[0], 0, deadline=time.monotonic() - 1))
    good = session.add(Request(images[1], 1))
    results = drain(session)

    assert (results[late].expired, results[late].started, results[late].converged) == (True, False, False)
    assert results[late].logits.isnan().all()
    assert results[late].logits.shape == results[good].logits.shape
    assert (results[good].expired, results[good].started, results[good].converged) == (False, True, True)


def test_a_batch_whose_time_is_over_at_once_has_nan_for_every_logit(defense_for, model, images):
    batch = defense_for(model, images).defend(images, deadline=-1.0)

    assert batch.logits.shape == (24, 10)
    assert batch.logits.isnan().all()
    assert not batch.started.any()
    assert batch.expired.all()


@pytest.mark.parametrize("loops", [1, 3])
def test_without_a_seed_the_same_image_meets_new_noise_by_every_way(model, images, loops):
    defense = ActiveDefense(model, compile=False, beta=3.0, slots=8, seed=None, outer_loops=loops, deterministic=True)
    defense.calibrate(images)
    one = images[:1].expand(3, -1, -1, -1)
    session = defense.session()
    for image in one:
        session.add(Request(image))
    seen = [*defense.defend(one).images, *defense.smooth(one).images, *(r.image for r in defense.stream(one))]
    seen += [result.image for result in drain(session).values()]
    seen += list(defense.noised(one))

    assert len({tuple(image.flatten().tolist()) for image in seen}) == len(seen) == 15
    assert not torch.equal(defense(one), defense(one))


def test_with_a_seed_the_same_image_meets_the_same_noise(defense_for, model, images):
    defense = defense_for(model, images, deterministic=True)

    assert torch.equal(defense(images), defense(images))

    defense.seed = None
    assert not torch.equal(defense(images), defense(images))

    defense.seed = 3
    assert torch.equal(defense(images), copy.deepcopy(defense.defend(images, ids=torch.arange(24)).logits))


def test_slots_go_back_when_nothing_is_under_way(defense_for, model, images):
    defense = defense_for(model, images, slots=4)
    session = defense.session()
    session.add(Request(images[0], 0))
    drain(session)
    there = sum(map(len, defense._steps._idle.values()))

    stream = defense.stream(images)
    next(stream)
    stream.close()

    assert there > 0
    assert sum(map(len, defense._steps._idle.values())) >= there
    assert session.has_capacity


def test_what_was_no_image_gets_no_slot_and_says_so_between_others(defense_for, model, images):
    defense = defense_for(model, images, slots=4, outer_loops=2)
    session = defense.session()
    good, bad, last = (session.add(Request(images[n], n, valid=n != 1)) for n in range(3))
    first = {result.request_id: result for result in session.step()}
    results = first | drain(session)

    assert set(first) == {bad}  # it waits for nothing
    found = results[bad]
    assert (found.invalid, found.started, found.expired, found.converged) == (True, False, False, False)
    assert found.steps == 0
    assert found.logits.isnan().all()
    assert not any(results[number].invalid for number in (good, last))


@pytest.mark.parametrize("loops", [1, 2])
def test_what_is_withdrawn_when_it_is_smoothed_and_not_classified_yet_has_no_result(defense_for, model, images, loops):
    defense = defense_for(model, images, slots=8, outer_loops=loops, deterministic=True)
    expected = defense.defend(images)
    session = defense.session(classify_batch=64)
    for number, image in enumerate(images):
        session.add(Request(image, number))
    while len(session._smoothed) < 3:
        session.step()
    withdrawn = session._smoothed[1].id // loops

    session.cancel(withdrawn)
    results = drain(session)

    assert sorted(results) == sorted(set(range(24)) - {withdrawn})
    assert all(torch.equal(result.logits, expected.logits[number]) for number, result in results.items())
