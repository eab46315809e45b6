"""One Session behind every door: the same images, ids and seed have the same answer, whoever is asked."""

import http.client
import json
import threading
from functools import cache

import numpy as np
import pytest
import torch

from fastdef.checkpoint import load, save
from fastdef.defense import ActiveDefense
from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
from fastdef.nn import architecture_of, build, parse_architecture
from tests.ports import port_of

SHAPE, SEED, COUNT = (1, 12, 12), 3, 24
LOOPS = [1, 3]


@pytest.fixture(scope="module")
def images():
    return torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def file(images, tmp_path_factory):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=10, in_channels=1)).eval()
    defense = ActiveDefense(model, beta=3.0, max_steps=60, compile=False)
    defense.calibrate(images)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save(path, model, architecture=architecture_of(model), classes=list("abcdefghij"), defense=defense.config())
    return path


@pytest.fixture(scope="module")
def export(file, tmp_path_factory):
    """The folder of an export, by its outer loops; each is written once."""

    @cache
    def folder(loops):
        pytest.importorskip("onnxruntime")
        checkpoint, place = load(file), tmp_path_factory.mktemp("exported")
        checkpoint.defense["outer_loops"] = loops
        export_onnx(checkpoint, place, shape=SHAPE)
        return place

    return folder


@pytest.fixture(params=LOOPS)
def loops(request):
    return request.param


@pytest.fixture
def defense(file, loops):
    return ActiveDefense.from_checkpoint(
        load(file), compile=False, slots=8, seed=SEED, deterministic=True, outer_loops=loops
    )


@pytest.fixture
def batch(defense, images):
    return defense.defend(images)


def test_a_stream_is_the_batch(defense, images, batch):
    results = list(defense.stream(images))

    assert torch.equal(torch.stack([result.logits for result in results]), batch.logits)
    assert torch.equal(torch.stack([result.image for result in results]), batch.images)
    assert [result.steps for result in results] == batch.steps.tolist()


def test_the_worker_s_answers_are_the_batch_s(defense, images, batch):
    pytest.importorskip("fastapi")
    from fastdef.serving import Worker

    with Worker(defense, SHAPE) as worker:
        submitted = [worker.submit(image, id=number) for number, image in enumerate(images)]
        replies = [reply.result(60) for reply in submitted]

    assert torch.equal(torch.stack([reply.probabilities for reply in replies]), batch.logits.exp())
    assert [reply.steps for reply in replies] == batch.steps.tolist()


def test_the_server_s_answers_are_the_batch_s(defense, images, batch):
    pytest.importorskip("fastapi")
    import uvicorn

    from fastdef.serving import Worker, application
    from fastdef.serving.run import Config

    app = application(Worker(defense, SHAPE), classes=list("abcdefghij"), shape=SHAPE, replay=True)
    server = uvicorn.Server(Config(lambda: app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    port = port_of(server, thread)
    answers = {}
    clients = [
        threading.Thread(target=lambda n=number: answers.update({n: ask(port, images[n], n)}))
        for number in range(COUNT)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    server.should_exit = True
    thread.join()

    probabilities = torch.tensor([answers[number]["probabilities"] for number in range(COUNT)])
    assert torch.equal(probabilities, batch.logits.exp())
    assert [answers[number]["steps"] for number in range(COUNT)] == batch.steps.tolist()


def ask(port, image, number):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = image.numpy().astype("<f4").tobytes()
    connection.request("POST", f"/classify?id={number}", body, {"content-type": "application/octet-stream"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.mark.parametrize("loops", [pytest.param(1, marks=pytest.mark.slow), 3], indirect=True)
@pytest.mark.parametrize("driven", [False, True])
def test_the_engine_s_classes_are_the_batch_s(export, loops, images, batch, driven):
    """Two programs round apart: the sign of a feature at the mean may flip, so decisions are compared."""
    with load_engine(export(loops), driven=driven, slots=8) as engine:
        result = engine(images.numpy(), ids=np.arange(COUNT), seed=SEED)

    assert (result.probabilities.argmax(1) == batch.logits.argmax(1).numpy()).mean() >= 0.95
    assert np.abs(result.probabilities - batch.logits.exp().numpy()).max() < 0.05
    assert np.abs(result.steps - batch.steps.numpy()).max() <= loops


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_driven_engine_goes_on_where_two_slots_fit(export, images, monkeypatch):
    with load_engine(export(3), driven=True, slots=8) as engine:
        expected = engine(images.numpy())
        slots = engine._opened[0]
        acquire = slots.acquire

        def two_at_most(size, like):
            if size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return acquire(size, like)

        monkeypatch.setattr(slots, "acquire", two_at_most)
        result = engine(images.numpy())

    assert slots.most == 2
    np.testing.assert_array_equal(result.steps, expected.steps)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, rtol=1e-4, atol=1e-5)
