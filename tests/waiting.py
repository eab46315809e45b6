"""Waiting for something to become true, in place of a sleep that hopes it has."""

import time


def wait_until(true, seconds=30):
    """Until ``true()`` is; an assertion error where it takes longer than that."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
