"""A network that people bring goes the whole way: saved, calibrated, defended, evaluated, exported, served."""

import http.client
import json
import threading

import numpy as np
import pytest
import torch

from fastdef.assets import ASSETS
from fastdef.checkpoint import load, save
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense, choose_layers
from tests.checkpoint import networks
from tests.ports import port_of
from tests.timm_import import import_timm

CLASSES = [str(number) for number in range(10)]
TIMM = {"num_classes": 10, "in_chans": 1}


def of_timm():
    return import_timm().create_model("tinynet_e", pretrained=False, **TIMM).eval()


BROUGHT = {
    "timm": (of_timm, "timm:tinynet_e", TIMM, None),
    "own": (lambda: networks.wrapped().eval(), "tests.checkpoint.networks:wrapped", None, "named"),
}


@pytest.fixture(scope="module")
def images():
    return load_dataset("fashion-mnist", "test", root=ASSETS).floats(0, 16)


@pytest.mark.slow  # README.md's blocks go most of it, in every run
@pytest.mark.parametrize("name", BROUGHT)
def test_the_whole_way(name, images, run, tmp_path):
    make, source, arguments, named = BROUGHT[name]
    torch.manual_seed(0)
    model, path = make(), tmp_path / "model.safetensors"
    layer = choose_layers(model, images)[0]
    defense = ActiveDefense(model, layer.name, beta=layer.beta, max_steps=8, compile=False)
    defense.calibrate(images)
    save(path, model, source=source, source_args=arguments, classes=CLASSES, defense=defense.config())
    naming = [] if named is None else ["--source", source]
    data = ["--data", "fashion-mnist", "--root", ASSETS, "--limit", 2]

    checkpoint = load(path, source=source if named else None)
    loaded = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    expected = loaded.defend(images)

    torch.testing.assert_close(expected.logits, defense.defend(images).logits)
    assert run("evaluate", path, *data, "--steps", 2, "--no-compile", *naming)[0] == 0
    assert run("evaluate-adaptive", path, *data, "--rows", "0", *naming)[0] in (
        0,
        1,
    )  # random weights fail its checks
    exported(path, naming, images, expected, run, tmp_path)
    served(loaded, images, expected)


def exported(path, naming, images, expected, run, tmp_path):
    pytest.importorskip("onnxruntime")
    from fastdef.export.engine import load_engine

    written = run("export", path, "--out", tmp_path / "out", "--size", 28, *naming)
    assert written[0] == 0, written
    with load_engine(tmp_path / "out", driven=True, slots=8) as engine:
        answers = engine(images.numpy(), ids=np.arange(len(images)))
    assert np.abs(answers.probabilities - expected.logits.exp().numpy()).max() < 0.05
    assert np.abs(answers.steps - expected.steps.numpy()).max() <= 1


def served(defense, images, expected):
    pytest.importorskip("fastapi")
    import uvicorn

    from fastdef.serving import Worker, application
    from fastdef.serving.run import Config

    app = application(Worker(defense, (1, 28, 28)), classes=CLASSES, shape=(1, 28, 28), replay=True)
    server = uvicorn.Server(Config(lambda: app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    port = port_of(server, thread)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = images[0].numpy().astype("<f4").tobytes()
    connection.request("POST", "/classify?id=0", body, {"content-type": "application/octet-stream"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    server.should_exit = True
    thread.join()

    torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected.logits[0].exp(), rtol=1e-3, atol=1e-4)
