"""A session driven to its end: all requests of a batch, or a stream of any length in order."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from fastdef.runtime.requests import BatchResult, Request, Result
from fastdef.runtime.session import Session


def run_batch(
    session: Session, requests: Iterable[Request], progress: Callable[[int], object] | None = None
) -> BatchResult:
    """All requests at once; ``progress`` is called with the number of results that have just come."""
    results: list[Result] = []
    with session:
        for request in requests:
            session.add(request)
        while session.unfinished:
            ended = session.step()
            results += ended
            if ended and progress is not None:
                progress(len(ended))
    return BatchResult.of(sorted(results, key=lambda result: result.request_id))


def in_order(session: Session, requests: Iterable[Request]) -> Iterator[Result]:
    """Results in the order of the requests, which are pulled as slots fall empty.

    At most eight times as many as there are slots are between the door and the exit, so a stream of any length takes
    bounded memory: an image that takes very long holds up the ones behind it, and then the door. Where the requests end
    in an exception, it is raised after the results of those before it.
    """
    source = iter(requests)
    ready: dict[int, Result] = {}
    following = 0
    failure: Exception | None = None
    with session:
        while True:
            window = 8 * session.chunk - session.unfinished - len(ready)
            if session.has_capacity and window > 0 and failure is None:
                failure = _add(session, islice(source, min(session.chunk, window)))
            if not session.unfinished:
                if failure is not None:
                    raise failure
                return
            ready.update((result.request_id, result) for result in session.step())
            while following in ready:
                yield ready.pop(following)
                following += 1


def _add(session: Session, requests: Iterator[Request]) -> Exception | None:
    """Add them; what the next of them raises, where it does."""
    try:
        for request in requests:
            session.add(request)
    except Exception as error:  # it is of whoever makes the requests, and is raised when they are answered
        return error
    return None
