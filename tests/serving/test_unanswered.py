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
