import json

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
