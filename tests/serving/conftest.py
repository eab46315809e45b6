import http.client
import socket
import threading
import time
from importlib.util import find_spec

import pytest
import torch

from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet

collect_ignore_glob = [] if find_spec("fastapi") else ["test_*"]  # of an extra, which not every machine has
SHAPE = (1, 12, 12)
CLASSES = tuple("abcdefghij")


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
def batcher(defense):
    from fastdef.serving import Batcher

    batcher = Batcher(defense, SHAPE, queue_size=64)
    yield batcher
    batcher.close()


class Server:
    """A real one, on the loopback."""

    def __init__(self, app):
        import uvicorn

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), read

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve():
    from fastdef.serving import application

    started = []

    def start(batcher, **options):
        server = Server(application(batcher, classes=CLASSES, shape=SHAPE, **options))
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
