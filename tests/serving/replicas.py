"""``fastdef serve --replicas`` as a user starts it, and the processes below it."""

import http.client
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
RAW = {"content-type": "application/octet-stream"}
PATIENCE = 240  # seconds: each process imports torch, and there may be two cores for all of them

needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="needs Ray: make .venv/.ray")


class Cluster:
    """A server with replicas, on a port of the loopback."""

    def __init__(self, port, process):
        self.port, self.process = port, process

    def ask(self, method, path, body=None, timeout=PATIENCE):
        """Status, headers and body; on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, RAW if body is not None else {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def healthy(self):
        assert self.process.poll() is None, "the server ended"
        try:
            status, _, body = self.ask("GET", "/health")
        except OSError:
            return False
        return status == 200 and json.loads(body)["ok"]

    def replicas(self):
        """Numbers of the processes that have a device."""
        listed = subprocess.run(
            ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()]
        parents = {int(process): int(parent) for process, parent, _ in rows}
        devices = [int(process) for process, _, name in rows if name.startswith("ray::ServeReplica:fastdef:Defense")]
        return sorted(process for process in devices if self._is_below(process, parents))

    def _is_below(self, process, parents):
        while process in parents and process != self.process.pid:
            process = parents[process]
        return process == self.process.pid

    def metric(self, name):
        """Its value, over all replicas."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def stop(self):
        """As ``kill`` does; its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def started(command, port, replicas, log):
    """A server by that command, once so many replicas answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    environment.pop("RAY_ADDRESS", None)
    with log.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=written, start_new_session=True)
    cluster = Cluster(port, process)
    try:
        wait_until(cluster.healthy, PATIENCE)
        wait_until(lambda: len(cluster.replicas()) == replicas, PATIENCE)
        yield cluster
    except BaseException:
        sys.stderr.write(log.read_text()[-4000:])
        raise
    finally:
        if process.poll() is None:
            cluster.stop()
