"""A data set in batches, in order."""


def spans(count: int, size: int) -> list[tuple[int, int]]:
    """First and one past the last image of every batch of ``size``; the last may be smaller."""
    return [(start, min(start + size, count)) for start in range(0, count, size)]
