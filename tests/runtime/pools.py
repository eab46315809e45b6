"""A pool of slots that are made when they are asked for, and a scheduler run to its end."""

from fastdef.runtime import Stats
from fastdef.runtime.scheduler import Scheduler


class Made:
    """Slots by size, each made once."""

    def __init__(self, make, sizes):
        self.make, self.sizes, self.made, self.released = make, sizes, {}, []

    def acquire(self, size, like):
        self.made[size] = self.make(size)
        return self.made[size]

    def release(self, slots):
        self.released.append(slots.size)


def run(starts, pool, delta, stats=None, **options):
    """Everything that leaves, as it leaves; a start enters when there is room."""
    scheduler = Scheduler(pool, delta, stats or Stats(), **options)
    rest = list(starts)
    while rest or len(scheduler):
        while rest and scheduler.room > 0:
            scheduler.add(rest.pop(0))
        yield from scheduler.advance()


def drain(session, most=10_000):
    """Every result that is left, by its request's number; a session that does not come to its end fails."""
    results = {}
    for _ in range(most):
        if not session.unfinished:
            return results
        results.update((result.request_id, result) for result in session.step())
    raise AssertionError(f"{session.unfinished} requests have no result after {most} steps")
