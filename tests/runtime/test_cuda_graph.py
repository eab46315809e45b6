"""What the host makes of slots on a GPU. Here their work is done at once; the real ones run in the GPU tests."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from fastdef.runtime.cuda_graph import GraphedSlots, steps_a_look
from fastdef.runtime.pool import LoopRequest
from fastdef.runtime.slots import Slots
from tests.runtime.pools import Made, run


class Arrival:
    """An event after a copy to the host, whose target holds nothing of use until it was waited for."""

    def __init__(self, target):
        self.target = target

    def record(self):
        self.sent = self.target.clone()
        self.target.fill_(torch.nan)

    def synchronize(self):
        self.target.copy_(self.sent)


class Replayed(GraphedSlots):
    """Replays by running, on the CPU."""

    def _on_device(self):
        return contextlib.nullcontext()

    def _pinned(self, like):
        return torch.zeros_like(like)

    def _capture(self):
        self._advance_and_report()
        return SimpleNamespace(replay=self._advance_and_report)

    def _seconds(self):
        return 1.0


@pytest.fixture
def replayed(monkeypatch):
    """Slots of a size that take so many steps a look."""
    monkeypatch.setattr(torch.cuda, "Event", lambda: None)

    def make(size, every):
        slots = Replayed(step, torch.zeros(size, 1, 2, 2))
        slots._arrived = [Arrival(report) for report in slots._reports]
        slots.every = every
        slots.clear(0.5)
        return slots

    return make


def step(images, steps, limits, delta):
    """Takes 1 from an image until its mean is at most delta, or its steps are spent."""
    loss = images.mean((1, 2, 3))
    running = (loss > delta) & (steps < limits)
    return torch.where(running[:, None, None, None], images - 1, images), steps + running, loss, running


def starts(deadline=None):
    needed = [3, 0, 17, 1, 5, 200, 2, 2, 40, 8, 11, 0, 1]
    for key, count in enumerate(needed):
        yield LoopRequest(key, torch.full((1, 2, 2), float(count)), limit=30, deadline=deadline)


def ends(make, sizes, deadline=None, **options):
    left = sorted(run(starts(deadline), Made(make, sizes), 0.5, **options), key=lambda end: end.id)
    return [(end.id, end.image.mean().item(), end.steps, end.loss, end.expired) for end in left]


@pytest.mark.parametrize("sizes", [[4], [1, 2, 4]])
@pytest.mark.parametrize("every", [1, 3, 8])
@pytest.mark.parametrize("quantum", [None, 1, 4])
def test_looking_one_look_behind_changes_no_answer(replayed, every, sizes, quantum):
    graphed = {size: replayed(size, every) for size in sizes}
    plain = {size: Slots(step, torch.zeros(size, 1, 2, 2)) for size in sizes}
    for slots in plain.values():
        slots.clear(0.5)

    left = ends(graphed.__getitem__, sizes, quantum=quantum)

    assert left == ends(plain.__getitem__, sizes)
    assert [steps for _, _, steps, _, _ in left] == [3, 0, 17, 1, 5, 30, 2, 2, 30, 8, 11, 0, 1]


def test_an_image_whose_time_is_up_leaves_with_the_steps_that_made_it(replayed, monkeypatch):
    slots, clock = replayed(4, 2), iter(range(1000))
    monkeypatch.setattr("fastdef.runtime.scheduler.time.monotonic", lambda: next(clock))

    left = ends(lambda size: slots, [4], deadline=10.0)

    needed = [3, 0, 17, 1, 5, 200, 2, 2, 40, 8, 11, 0, 1]
    assert any(expired for *_, expired in left)
    assert all(mean == needed[key] - steps for key, mean, steps, _, _ in left)


def test_a_look_is_as_few_steps_as_hide_it():
    assert [steps_a_look(seconds) for seconds in (1e-2, 1e-3, 1e-4, 1e-7)] == [1, 1, 3, 8]
