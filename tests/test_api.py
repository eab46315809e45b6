"""The whole way in Python, for a network that nothing but this file knows: no model file, no command line."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import fastdef
from fastdef.runtime import Gradient, Polyak
from tests.ports import port_of
from tests.waiting import wait_until

SHAPE = (1, 12, 12)


class Network(nn.Module):
    """A user's own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.body(self.stem(images)).mean((2, 3)))


@pytest.fixture
def images():
    return torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Network().eval()


def defended(model, images, **options):
    defense = fastdef.ActiveDefense(model, "stem", beta=1.0, compile=False, slots=4, max_steps=200, **options)
    defense.calibrate(images)
    return defense


@pytest.fixture
def dataset(images):
    labels = torch.arange(12) % 3
    return fastdef.Dataset((images * 255).to(torch.uint8), labels, ("a", "b", "c"), "own", "test")


def test_a_defense_is_evaluated_without_a_file(model, images, dataset):
    rows = fastdef.evaluate(defended(model, images), dataset).rows
    alone = fastdef.evaluate(model, dataset).rows

    assert len(rows) == 4
    assert len(alone) == 2
    assert [row.accuracy for row in alone] == [row.accuracy for row in rows[:2]]


@pytest.mark.skipif(find_spec("pyautoattack") is None, reason="is of an extra")
def test_a_defense_is_evaluated_by_those_who_know_it(model, images, dataset):
    results = fastdef.evaluate_adaptive(defended(model, images), dataset, rows=[0])

    assert results.settings["defense"]["layer"] == "stem"
    with pytest.raises(ValueError, match="smoke, quick, standard, full"):
        fastdef.evaluate_adaptive(model, dataset, budget="none")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"clamp": True, "solver": Polyak(margin=0.05)}],
    ids=["paper", "clamp and polyak"],
)
def test_an_export_answers_as_the_defense_that_it_was_made_of(model, images, tmp_path, options):
    pytest.importorskip("onnxruntime")
    from fastdef.export.engine import load_engine

    defense = defended(model, images, outer_loops=2, **options)
    fastdef.export_onnx(defense, tmp_path, shape=SHAPE, classes=("x", "y", "z"))

    expected = defense.defend(images)
    with load_engine(tmp_path) as engine:
        got = engine(images.numpy(), ids=torch.arange(12).numpy(), seed=defense.seed)

    assert got.steps.tolist() == expected.steps.tolist()
    torch.testing.assert_close(torch.from_numpy(got.probabilities), expected.logits.exp(), rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "model.json").read_text())["classes"] == ["x", "y", "z"]


def test_a_model_file_keeps_what_is_not_the_papers(model, images):
    usual = defended(model, images)
    unusual = defended(model, images, clamp=True, solver=Polyak(margin=0.05, most=100.0))

    again = fastdef.ActiveDefense.from_config(model, json.loads(json.dumps(unusual.config())), compile=False)

    assert set(unusual.config()) - set(usual.config()) == {"clamp", "solver"}
    assert (again.clamp, again.solver) == (True, Polyak(margin=0.05, most=100.0))
    assert fastdef.ActiveDefense.from_config(model, usual.config()).solver == Gradient(1.0)


def test_a_solver_that_no_file_can_hold_is_refused(model, images, tmp_path):
    class Own:
        def stride(self, loss, direction, *, delta, features):
            return 1e-3

    with pytest.raises(ValueError, match="needs a solver among gradient, polyak"):
        fastdef.export_onnx(defended(model, images, solver=Own()), tmp_path, shape=SHAPE)
    with pytest.raises(ValueError, match="needs a name among gradient, polyak"):
        fastdef.ActiveDefense.from_config(model, {**defended(model, images).config(), "solver": {"name": "own"}})


_SERVED = """
import torch, fastdef
from torch import nn
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 3)).eval()
fastdef.serve(fastdef.ActiveDefense(model, "0", beta=1.0, delta=1.0, compile=False), shape=(1, 12, 12), port=0)
print("ended")
"""


@pytest.mark.skipif(find_spec("fastapi") is None, reason="is of an extra")
def test_an_interrupt_ends_the_server_and_the_program_goes_on():
    command = [sys.executable, "-c", _SERVED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        said = ""
        while "running on" not in said:
            said = program.stderr.readline()
            assert said, "it never listened"
        program.send_signal(signal.SIGINT)
        out, error = program.communicate()

    assert (program.returncode, out) == (0, "ended\n")
    assert "Traceback" not in error


def test_a_model_in_training_is_refused_and_its_statistics_stay(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    with pytest.raises(ValueError, match="eval mode"):
        fastdef.export_onnx(model, tmp_path, shape=SHAPE)

    assert model[1].num_batches_tracked == 0
    assert not list(tmp_path.iterdir())


def test_as_many_names_as_classes(model, tmp_path):
    with pytest.raises(ValueError, match="3 classes needs as many names, got 2"):
        fastdef.export_onnx(model, tmp_path, shape=SHAPE, classes=("x", "y"))
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_suggested_layer_and_calibrates(model, images):
    from fastdef.defense import choose_layers

    best = choose_layers(model, images)[0]

    chosen = fastdef.ActiveDefense.auto(model, images, ratio=0.8, compile=False)
    own = fastdef.ActiveDefense.auto(model, images, layer="body", delta=0.5, compile=False)

    assert (chosen.layer, chosen.beta) == (best.name, best.beta)
    assert chosen.delta == fastdef.ActiveDefense(model, best.name).calibrate(images, ratio=0.8)
    assert (own.layer, own.delta) == ("body", 0.5)
    assert own.beta == next(choice.beta for choice in choose_layers(model, images) if choice.name == "body")


@pytest.mark.skipif(find_spec("fastapi") is None, reason="is of an extra")
def test_a_defense_is_served(model, images, monkeypatch):
    import uvicorn

    servers = []
    monkeypatch.setattr(uvicorn.Server, "install_signal_handlers", lambda self: None, raising=False)
    begin = uvicorn.Server.__init__
    monkeypatch.setattr(uvicorn.Server, "__init__", lambda self, config: (servers.append(self), begin(self, config))[1])
    defense = defended(model, images)
    thread = threading.Thread(target=fastdef.serve, args=(defense,), kwargs={"shape": SHAPE, "port": 0})
    thread.start()
    wait_until(lambda: servers or not thread.is_alive(), 120)
    port = port_of(servers[0], thread)

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body, kind = images[0].numpy().astype("<f4").tobytes(), {"content-type": "application/octet-stream"}
    connection.request("POST", "/classify", body, kind)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    servers[0].should_exit = True
    thread.join()

    assert answer["steps"] > 0
    assert answer["class"] in ("0", "1", "2")
