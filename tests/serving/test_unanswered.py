import asyncio
import json

import pytest
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from fastdef.serving.unanswered import Unanswered


async def silent(scope, receive, send):
    """What Ray's proxy does where a replica died."""


async def broken_off(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})


@pytest.mark.parametrize("app", [silent, broken_off])
def test_no_response_is_503_with_a_reason(app):
    answer = TestClient(Unanswered(app)).post("/classify", content=b"x")

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "try again" in json.loads(answer.content)["error"]


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_response_is_passed_on_as_it_is(status):
    answer = TestClient(Unanswered(JSONResponse({"a": 1}, status, {"x-own": "1"}))).get("/")

    assert (answer.status_code, answer.json(), answer.headers["x-own"]) == (status, {"a": 1}, "1")


def sent(app, kind):
    """All that is sent to a connection of that kind."""
    messages = []

    async def send(message):
        messages.append(message)

    asyncio.run(Unanswered(app)({"type": kind}, None, send))
    return messages


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_may_end_without_a_word_or_with_a_head(kind):
    assert sent(silent, kind) == []
    assert [message["type"] for message in sent(broken_off, kind)] == ["http.response.start"]


def test_what_follows_a_body_is_passed_on_in_its_order():
    given = [{"type": f"http.response.{part}"} for part in ("start", "body", "body", "trailers")]

    async def app(scope, receive, send):
        for message in given:
            await send(message)

    assert sent(app, "http") == given
