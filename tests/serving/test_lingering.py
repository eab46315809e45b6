"""An answer that comes before the body has: it is written, the rest of the body is dropped, and only then it ends."""

import asyncio

import pytest

from fastdef.serving.lingering import Lingering

START = {"type": "http.response.start", "status": 413, "headers": []}
COMES = [(b"content-length", b"9")]
END = {"type": "http.response.body", "body": b""}
SILENCE = "silence"


def body(text, more=False):
    return {"type": "http.response.body", "body": text, "more_body": more}


def part(text, more=True):
    return {"type": "http.request", "body": text, "more_body": more}


def told(app, *heard, then=SILENCE, headers=COMES, kind="http", seconds=30.0, **options):
    """What is sent and how often the client was heard, in order: messages, and "heard" for each of what it says."""
    script, log = iter(heard), []

    async def receive():
        message = next(script, then)
        log.append("heard")
        await asyncio.sleep(0)
        if message == SILENCE:
            await asyncio.Event().wait()
        return message

    async def send(message):
        log.append(message)

    lingering = Lingering(app, seconds, **options)
    asyncio.run(asyncio.wait_for(lingering({"type": kind, "headers": headers}, receive, send), 10))
    return log


def refuses(*parts):
    """An application that answers by those parts, and hears nothing."""

    async def app(scope, receive, send):
        for message in parts:
            await send(message)

    return app


def test_the_rest_of_a_body_is_dropped_between_the_answer_and_its_end():
    log = told(refuses(START, body(b"too large")), part(b"a"), part(b"b"), part(b"c", more=False), part(b"next"))

    assert log == [START, body(b"too large", more=True), "heard", "heard", "heard", END]


def test_an_answer_in_parts_ends_with_its_last():
    log = told(refuses(START, body(b"a", more=True), body(b"b")), part(b"x", more=False))

    assert log == [START, body(b"a", more=True), body(b"b", more=True), "heard", END]


def test_a_last_part_that_says_nothing_of_more_is_the_last():
    last = {"type": "http.response.body", "body": b"a"}

    assert told(refuses(START, last), part(b"x", more=False)) == [START, body(b"a", more=True), "heard", END]
    assert told(refuses(START, last), {"type": "http.request"}) == [START, body(b"a", more=True), "heard", END]


def test_a_client_that_leaves_ends_the_answer():
    log = told(refuses(START, body(b"a")), part(b"x"), {"type": "http.disconnect", "more_body": True})

    assert log == [START, body(b"a", more=True), "heard", "heard", END]


@pytest.mark.parametrize("last", [part(b"b", more=False), {"type": "http.disconnect"}])
def test_an_answer_after_the_body_is_passed_on_as_it_is(last):
    async def app(scope, receive, send):
        while (await receive()).get("more_body", False):
            pass
        await refuses(START, body(b"done"))(scope, receive, send)

    assert told(app, part(b"a"), last) == ["heard", "heard", START, body(b"done")]


def test_what_an_application_hears_after_the_end_of_a_body_does_not_begin_it_anew():
    async def app(scope, receive, send):
        for _ in range(2):
            await receive()
        await send(body(b"done"))

    assert told(app, part(b"a", more=False), part(b"next")) == ["heard", "heard", body(b"done")]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-length", b"0")],
        [(b"content-length", b"9"), (b"expect", b"100-continue")],
        [(b"transfer-encoding", b"chunked"), (b"expect", b"100-continue")],
    ],
)
def test_nothing_is_waited_for_where_no_body_comes_by_itself(headers):
    assert told(refuses(START, body(b"a")), headers=headers) == [START, body(b"a")]


@pytest.mark.parametrize("headers", [[(b"transfer-encoding", b"chunked")], [(b"content-length", b"1")]])
def test_a_body_is_announced_by_its_length_or_its_encoding(headers):
    log = told(refuses(START, body(b"a")), part(b"x", more=False), headers=headers)

    assert log == [START, body(b"a", more=True), "heard", END]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_is_passed_on(kind):
    assert told(refuses(START, body(b"a")), kind=kind) == [START, body(b"a")]


def test_a_client_that_falls_silent_is_not_waited_for():
    """Long before all the time is over in which one that sends is heard."""
    log = told(refuses(START, body(b"a")), part(b"x"), SILENCE, seconds=1000.0, patience=0.01)

    assert log == [START, body(b"a", more=True), "heard", "heard", END]


def test_a_client_that_sends_for_ever_is_heard_for_so_long_alone():
    log = told(refuses(START, body(b"a")), then=part(b"x"), seconds=0.01, patience=1000.0)

    assert "heard" in log
    assert log[-1] == END


def test_where_no_time_is_given_nothing_is_heard():
    assert told(refuses(START, body(b"a")), part(b"x"), seconds=0.0) == [START, body(b"a", more=True), END]
