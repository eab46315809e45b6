import http.client
import socket
import threading
from importlib.util import find_spec

import pytest
import torch

from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet
from tests.ports import port_of

collect_ignore_glob = [] if find_spec("fastapi") else ["test_*"]  # of an extra, which not every machine has
SHAPE = (1, 12, 12)
RAW = "application/octet-stream"
CLASSES = tuple("abcdefghij")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """An attack of the page has its share of a machine that is full of tests: it gives way to all of them else."""
    monkeypatch.setattr("fastdef.serving.page.attacks._give_way", lambda: None)


@pytest.fixture(scope="session")
def images():
    return torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def defense(images):
    torch.manual_seed(0)
    defense = ActiveDefense(WideResNet(10, 1, in_channels=1).eval(), beta=3.0, compile=False, slots=8, seed=3)
    defense.calibrate(images)
    return defense


@pytest.fixture
def worker(defense):
    from fastdef.serving import Worker

    with Worker(defense, SHAPE, queue_size=64) as worker:
        yield worker


@pytest.fixture
def held(defense):
    """A worker that has room for one image beyond its slots, and what has to be set before any gets anywhere."""
    from fastdef.serving import Worker

    gate, noise = threading.Event(), defense.noise
    defense.noise = lambda *given: gate.wait(60) and noise(*given)  # before a worker has begun to use it
    with Worker(defense, SHAPE, queue_size=1) as worker:
        yield worker, gate
        gate.set()


@pytest.fixture
def rough(defense):
    """The noise id of an image so rough that no number of steps would do."""
    noise, checker = defense.noise, (torch.arange(144).view(1, 12, 12) % 2) * 1e6
    defense.noise = lambda ids, loop, like: noise(ids, loop, like) + checker * (ids == 99).view(-1, 1, 1, 1)
    defense.max_steps = 1 << 30
    return 99


class Server:
    """A real one, on the loopback."""

    def __init__(self, app, **options):
        import uvicorn

        from fastdef.serving.run import Config

        self.server = uvicorn.Server(Config(lambda: app, port=0, log_level="error", **options))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        self.port = port_of(self.server, self.thread)

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), read

    def connect(self, sent=b""):
        """An open connection, on which something has been sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(sent)
        return connection

    def post(self, body, length=None):
        """An open connection on which a request to classify has been sent, or a part of it."""
        head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: {RAW}\r\ncontent-length: {length or len(body)}"
        return self.connect(f"{head}\r\n\r\n".encode() + body)

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve():
    from fastdef.serving import application

    started = []

    def start(worker, *, listening=None, **options):
        server = Server(application(worker, **{"classes": CLASSES, "shape": SHAPE, **options}), **(listening or {}))
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def client():
    """Asks an application in this process, without a socket."""
    from starlette.testclient import TestClient

    from fastdef.serving import application

    return lambda worker, **options: TestClient(application(worker, classes=CLASSES, shape=SHAPE, **options))
