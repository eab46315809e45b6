from itertools import pairwise

import pytest
import torch

from fastdef.runtime.scheduler import Start, Tally, run
from fastdef.runtime.slots import Slots


def countdown(images, steps, limits, delta):
    """A step whose image says how many steps it needs: its value is the loss, and each step takes 1 off."""
    loss = images[:, 0, 0, 0].clone()
    running = (loss > delta) & (steps < limits)
    return images - running.view(-1, 1, 1, 1).float(), steps + running, loss, running


def leases():
    made = {}

    def lease(size):
        if size not in made:
            made[size] = Slots(countdown, torch.zeros(size, 1, 1, 1))
            made[size].clear(0.0)
        return made[size]

    return lease, made


def starts(needs, *, limit=10_000, deadline=None):
    return iter([Start(key, torch.full((1, 1, 1), float(need)), limit, deadline) for key, need in enumerate(needs)])


@pytest.mark.parametrize("sizes", [[1], [7], [1, 4, 16], [64]])
def test_every_image_leaves_once_with_its_own_number_of_steps(sizes):
    needs = torch.randint(0, 50, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    lease, _ = leases()

    ends = list(run(starts(needs), lease, sizes, Tally()))

    assert sorted(end.key for end in ends) == list(range(40))
    assert all(end.steps == needs[end.key] and end.loss == 0.0 and not end.expired for end in ends)


def test_an_image_leaves_as_soon_as_it_is_done():
    lease, _ = leases()

    order = [end.key for end in run(starts([9, 1, 5, 1]), lease, [2], Tally())]

    assert order == [1, 2, 3, 0] or order == [1, 2, 0, 3]


def test_a_limit_stops_an_image_that_would_never_finish():
    lease, _ = leases()

    (stuck,) = run(starts([1e9], limit=12), lease, [1], Tally())

    assert stuck.steps == 12
    assert stuck.loss > 0


def test_a_passed_deadline_lets_an_image_out_unfinished():
    lease, _ = leases()

    ends = {end.key: end for end in run(starts([1e9, 0], deadline=0.0), lease, [2], Tally())}

    assert ends[0].expired
    assert not ends[1].expired  # it was done at the first look


def test_slow_images_do_not_hold_up_the_others():
    lease, _ = leases()

    order = [end.key for end in run(starts([1000, 1000, *[3] * 100]), lease, [4], Tally())]

    assert order[-2:] == [0, 1]


def test_the_batch_shrinks_as_the_queue_drains_and_grows_when_it_fills():
    lease, made = leases()
    needs = [100, *[1] * 20]

    list(run(starts(needs), lease, [1, 4, 16], Tally()))

    assert set(made) == {1, 16}


@pytest.mark.parametrize(("low", "high"), [(200, 500), (300, 301)])
def test_nearly_all_steps_are_useful(low, high):
    needs = torch.randint(low, high, (1024,), generator=torch.Generator().manual_seed(0)).tolist()
    lease, _ = leases()
    tally = Tally()

    list(run(starts(needs), lease, [1, 4, 16, 64], tally))

    assert tally.useful == sum(needs) + len(needs)
    assert tally.useful / tally.slot_steps > 0.95


def test_a_source_that_has_nothing_for_now_is_asked_again():
    lease, _ = leases()
    source = iter([*starts([3]), None, *(Start(key, torch.ones(1, 1, 1), 10) for key in (1, 2)), None])

    ends = list(run(source, lease, [4], Tally()))

    assert sorted(end.key for end in ends) == [0, 1, 2]
    assert all(a.key != b.key for a, b in pairwise(ends))
