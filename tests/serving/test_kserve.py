import json
from types import SimpleNamespace

import pytest
import torch

SHAPE = (1, 12, 12)


def request(images, **changes):
    data = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.flatten().tolist()}
    return json.dumps({"id": "7", "inputs": [{**data, **changes}]}).encode()


@pytest.fixture
def server(serve, worker):
    return serve(worker, name="shirts", max_bytes=1 << 20)


def test_it_is_live_and_ready(server, worker):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/shirts/ready"):
        assert server.ask("GET", path)[0] == 200

    worker.close()

    assert server.ask("GET", "/v2/health/live")[0] == 200
    assert server.ask("GET", "/v2/health/ready")[0] == 503
    assert server.ask("GET", "/v2/models/shirts/ready")[0] == 503


def test_the_metadata_fit_what_is_answered(server, images):
    metadata = json.loads(server.ask("GET", "/v2/models/shirts")[2])
    answer = json.loads(server.ask("POST", "/v2/models/shirts/infer", request(images[:3]))[2])

    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    assert [(o["name"], o["datatype"]) for o in metadata["outputs"]] == [
        (o["name"], o["datatype"]) for o in answer["outputs"]
    ]
    assert answer["id"] == "7"
    assert answer["model_name"] == "shirts"
    shapes = {output["name"]: output["shape"] for output in answer["outputs"]}
    assert shapes == {"probabilities": [3, 10], "steps": [3], "converged": [3]}


def test_nested_data_is_the_flat_data(server, worker, defense, images, monkeypatch):
    monkeypatch.setattr("secrets.randbits", lambda bits: 5)

    flat, nested = (
        json.loads(server.ask("POST", "/v2/models/shirts/infer", body)[2])
        for body in (request(images[:2]), request(images[:2], data=images[:2].tolist()))
    )

    expected = defense.defend(images[:2], ids=torch.tensor([5, 5]))
    for answer in (flat, nested):
        probabilities = torch.tensor(answer["outputs"][0]["data"]).view(2, 10)
        torch.testing.assert_close(probabilities, expected.logits.exp(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "pixels"}, "needs 'images' of FP32"),
        ({"datatype": "INT8"}, "needs 'images' of FP32"),
        ({"shape": [2, 1, 12, 13]}, "shape [N, 1, 12, 12]"),
        ({"data": [0.5]}, "and 1 values"),
        ({"data": "x"}, "needs an inference request"),
        ({"shape": [0, *SHAPE], "data": []}, "at least one image"),
        ({"shape": [73, *SHAPE], "data": [0.5] * 73 * 144}, "at most 72 images"),
        ({"data": [2.0] * 288}, "in [0, 1]"),
    ],
)
def test_a_malformed_request_is_400_in_one_line(server, images, changes, reason):
    status, _, body = server.ask("POST", "/v2/models/shirts/infer", request(images[:2], **changes))

    assert status == 400
    assert reason in json.loads(body)["error"]


def test_another_model_is_404(server, images):
    assert server.ask("POST", "/v2/models/shoes/infer", request(images[:1]))[0] == 404
    assert server.ask("GET", "/v2/models/shoes")[0] == 404


SMALL = (1, 2, 3)
GIVEN = {"name": "images", "shape": [2, *SMALL], "datatype": "FP32", "data": [0.5] * 12}


@pytest.fixture
def unasked():
    """An application whose worker is there, and is asked for nothing."""
    from starlette.testclient import TestClient

    from fastdef.serving import application

    worker = SimpleNamespace(alive=True, waiting=0, capacity=8, close=lambda grace: None)
    client = TestClient(application(worker, classes="ab", shape=SMALL, name="shirts"))
    client.worker = worker
    return client


def test_it_tells_of_itself_by_the_protocol(unasked):
    from fastdef import __version__

    assert unasked.get("/v2").json() == {"name": "fastdef", "version": __version__, "extensions": []}
    assert unasked.get("/v2/models/shirts").json() == {
        "name": "shirts",
        "platform": "fastdef",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 2, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "steps", "datatype": "INT32", "shape": [-1]},
            {"name": "converged", "datatype": "BOOL", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize(("alive", "status"), [(True, 200), (False, 503)])
def test_it_is_ready_as_long_as_images_are_answered(unasked, alive, status):
    unasked.worker.alive = alive

    server, model, live = (
        unasked.get(f"/v2/{path}") for path in ("health/ready", "models/shirts/ready", "health/live")
    )

    assert (server.status_code, server.json()) == (status, {"ready": alive})
    assert (model.status_code, model.json()) == (status, {"name": "shirts", "ready": alive})
    assert (live.status_code, live.json()) == (200, {"live": True})


@pytest.mark.parametrize("name", ["shirt", "shirtss", "a", "z"])
def test_every_other_name_is_404(unasked, name):
    for answer in (
        unasked.get(f"/v2/models/{name}"),
        unasked.get(f"/v2/models/{name}/ready"),
        unasked.post(f"/v2/models/{name}/infer", content=b""),
    ):
        assert answer.status_code == 404
        assert answer.json() == {"error": f"needs the model 'shirts', got '{name}'"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "codec can't decode"),
        (b"{}", "'inputs'"),
        (b"[]", "list indices must be integers"),
        (b"[" * 100_000, "recursion"),
        (json.dumps({"inputs": []}), "not enough values to unpack"),
        (json.dumps({"inputs": [GIVEN, GIVEN]}), "too many values to unpack"),
        (json.dumps({"inputs": [GIVEN], "parameters": []}), "'list' object has no attribute 'get'"),
        (json.dumps({"inputs": [GIVEN], "parameters": {"deadline": "soon"}}), "could not convert string to float"),
        (json.dumps({"inputs": [{**GIVEN, "shape": [float("inf"), *SMALL]}]}), "cannot convert float infinity"),
        (json.dumps({"inputs": [{"shape": [2, *SMALL], "datatype": "FP32"}]}), "'data'"),
    ],
    ids=range(11),
)
def test_what_is_no_inference_request_is_refused_with_the_reason(unasked, body, reason):
    answer = unasked.post("/v2/models/shirts/infer", content=body)

    assert answer.status_code == 400
    assert answer.json()["error"].startswith("needs an inference request with one input 'images', got other: ")
    assert reason in answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"name": "image"}, "'image', FP32, [2, 1, 2, 3] and 12 values"),
        ({"name": "pixels"}, "'pixels', FP32, [2, 1, 2, 3] and 12 values"),
        ({"name": None}, "None, FP32, [2, 1, 2, 3] and 12 values"),
        ({"datatype": "FP16"}, "'images', FP16, [2, 1, 2, 3] and 12 values"),
        ({"datatype": "INT8"}, "'images', INT8, [2, 1, 2, 3] and 12 values"),
        ({"shape": [2, 1, 3, 2]}, "'images', FP32, [2, 1, 3, 2] and 12 values"),
        ({"shape": [3, 1, 2, 2]}, "'images', FP32, [3, 1, 2, 2] and 12 values"),
        ({"shape": [2, 2, 3]}, "'images', FP32, [2, 2, 3] and 12 values"),
        ({"shape": [1, *SMALL]}, "'images', FP32, [1, 1, 2, 3] and 12 values"),
        ({"shape": [3, *SMALL]}, "'images', FP32, [3, 1, 2, 3] and 12 values"),
        ({"shape": [-2, *SMALL]}, "'images', FP32, [-2, 1, 2, 3] and 12 values"),
    ],
)
def test_each_thing_that_is_not_the_model_s_is_named(unasked, changes, got):
    answer = unasked.post("/v2/models/shirts/infer", content=json.dumps({"inputs": [{**GIVEN, **changes}]}))

    assert answer.status_code == 400
    assert answer.json()["error"] == f"needs 'images' of FP32 and shape [N, 1, 2, 3], got {got}"


@pytest.mark.parametrize("id", [None, "7"])
def test_an_id_comes_back_where_one_was_given(client, worker, images, id):
    given = {"name": "images", "shape": [1, *SHAPE], "datatype": "FP32", "data": images[0].flatten().tolist()}
    body = {"inputs": [given]} | ({} if id is None else {"id": id})

    answer = client(worker).post("/v2/models/fastdef/infer", content=json.dumps(body)).json()

    assert answer.get("id") == id
    assert set(answer) - {"id"} == {"model_name", "outputs"}
    assert [output["shape"] for output in answer["outputs"]] == [[1, 10], [1], [1]]
