"""What becomes of a request between the door and the worker."""

import asyncio
import json

import pytest
import torch

from fastdef.serving import Worker, application
from tests.waiting import wait_until

SHAPE = (1, 12, 12)
TYPE = {"content-type": "application/octet-stream"}
INFER = "/v2/models/fastdef/infer"


def raw(image):
    return image.numpy().astype("<f4").tobytes()


def several(images, **parameters):
    given = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.flatten().tolist()}
    return json.dumps({"inputs": [given], "parameters": parameters})


def status_of(app, body, *later, then):
    """Of the answer to a client that posts an image; the server hears ``later`` of it, and ``then`` is called."""
    scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": []}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in TYPE.items()]
    heard, sent = iter([{"type": "http.request", "body": body}, *later]), []

    async def receive():
        message = next(heard, None)
        if message is None:
            then()
            await asyncio.Event().wait()
        return message

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))
    return sent[0]["status"]


def test_a_client_that_stays_has_its_answer_whatever_else_is_heard_of_it(held, images):
    worker, gate = held
    app = application(worker, classes="abcdefghij", shape=SHAPE)

    assert status_of(app, raw(images[0]), {"type": "http.request"}, then=gate.set) == 200


def test_a_client_that_leaves_has_its_image_withdrawn(held, images, client):
    worker, gate = held
    app = application(worker, classes="abcdefghij", shape=SHAPE)

    assert status_of(app, raw(images[0]), {"type": "http.disconnect"}, then=gate.set) == 499

    wait_until(lambda: worker._unanswered == 0, 5)
    told = app.state.scrape().decode()
    assert "fastdef_withdrawn_total 1.0" in told
    assert 'fastdef_refused_total{status="499"} 1.0' in told


def test_the_images_of_a_request_before_one_that_is_refused_are_withdrawn(held, images, client):
    worker, _ = held
    body = several(torch.cat([images[:2], images[:1] + 1]))

    answer = client(worker).post(INFER, content=body)

    assert answer.status_code == 400
    wait_until(lambda: worker._unanswered == 0, 5)


def test_as_many_images_as_there_is_room_for_are_answered_and_one_more_never(held, images, client):
    worker, gate = held
    gate.set()
    server = client(worker)

    statuses = [server.post(INFER, content=several(images[:count])).status_code for count in (9, 10)]

    assert statuses == [200, 400]
    assert "fastdef_images_total 9.0" in server.get("/metrics").text


def test_a_worker_that_takes_nothing_more_is_503_with_a_time_to_come_again(worker, images, client):
    worker.close()

    answer = client(worker).post("/classify", content=raw(images[0]), headers=TYPE)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "shutting down" in answer.json()["error"]


def test_a_defense_that_fails_is_500_and_says_how_in_a_word(defense, images, client):
    defense.noise = lambda *given: 1 / 0
    with Worker(defense, SHAPE) as worker:
        answer = client(worker).post("/classify", content=raw(images[0]), headers=TYPE)

    assert answer.status_code == 500
    assert answer.json() == {"error": "no answer: ZeroDivisionError"}


@pytest.mark.parametrize(
    ("deadline", "status"), [("inf", 400), ("nan", 400), ("0", 400), ("-1", 400), ("20", 200), ("0.5", 200)]
)
def test_a_deadline_is_above_zero_and_comes(worker, images, client, deadline, status):
    server = client(worker)

    classified = server.post(f"/classify?deadline={deadline}", content=raw(images[0]), headers=TYPE)
    inferred = server.post(INFER, content=several(images[:1], deadline=float(deadline)))

    assert (classified.status_code, inferred.status_code) == (status, status)
    if status == 400:
        assert "needs a deadline" in classified.json()["error"]
        assert classified.json() == inferred.json()


def test_a_request_without_an_image_is_400(worker, images, client):
    answer = client(worker).post(INFER, content=several(images[:0]))

    assert answer.status_code == 400
    assert "at least one image" in answer.json()["error"]
