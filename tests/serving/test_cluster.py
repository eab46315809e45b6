"""Replicas on Ray Serve: killed, flooded and told to stop, they answer each request once, defended, or say 503."""

import json
import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import pytest
import torch

from fastdef.checkpoint import load, save
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture
from tests.ports import free_port
from tests.serving.replicas import RAW, ROOT, needs_ray, started
from tests.waiting import wait_until

pytestmark = [needs_ray, pytest.mark.slow]

SHAPE = (1, 12, 12)
LENGTH = 4 * 144
CLIENTS = 8
STEPS = 4000  # of an image that never gets there: more than it has time for


def write_model(path, **options):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=10, in_channels=1)).eval()
    defense = ActiveDefense(model, beta=3.0, compile=False, **options)
    if "delta" not in options:
        defense.calibrate(torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0)))
    described = {"architecture": architecture_of(model), "training": {"shape": list(SHAPE)}}
    save(path, model, classes=tuple("abcdefghij"), defense=defense.config(), **described)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model whose images are never smooth enough."""
    return write_model(tmp_path_factory.mktemp("endless") / "endless.safetensors", delta=1e-12, max_steps=STEPS)


@pytest.fixture(scope="module")
def images():
    return torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(0))


def raw(image):
    return image.numpy().astype("<f4").tobytes()


def serve(model, replicas, tmp_path, *options):
    port = free_port()
    command = [sys.executable, "-m", "fastdef", "serve", str(model), "--port", str(port), "--no-compile"]
    command += ["--device", "cpu", "--replicas", str(replicas), *options]
    return started(command, port, replicas, tmp_path / "log")


def test_with_a_replica_killed_under_attack_each_request_is_answered_once_and_defended_or_503(model, images, tmp_path):
    with serve(model, 2, tmp_path, "--replay", "--seed", "1", "--body-seconds", "2") as cluster:
        load_on = Load(cluster, images)
        with load_on:
            wait_until(lambda: len(load_on.answers) > 100, 120)
            before = cluster.replicas()
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda: before[0] not in cluster.replicas() and len(cluster.replicas()) == 2, 240)
            so_far = len(load_on.answers)
            wait_until(lambda: len(load_on.answers) > so_far + 100, 120)

    check(load_on, model, images)
    assert len(load_on.answers) > 200


def check(load_on, model, images):
    """Every request had one answer, its own and defended, or a 503 that says when to ask again."""
    answered = [answer for answer in load_on.answers if answer[2] == 200]
    refused = [answer for answer in load_on.answers if answer[2] != 200]
    assert load_on.broken == []
    assert {status for *_, status, _, _ in refused} <= {503}
    assert all("retry-after" in headers for *_, headers, _ in refused)
    assert len({id for _, id, *_ in load_on.answers}) == len(load_on.answers)
    assert len(refused) < len(answered) / 10
    defense = ActiveDefense.from_checkpoint(load(model), seed=1, compile=False)
    expected = defense.defend(
        images[[which for which, *_ in answered]], ids=torch.tensor([id for _, id, *_ in answered])
    )
    told = [json.loads(body) for *_, body in answered]
    assert [one["id"] for one in told] == [id for _, id, *_ in answered]
    assert [one["steps"] for one in told] == expected.steps.tolist()
    assert all(one["converged"] for one in told)
    probabilities = torch.tensor([one["probabilities"] for one in told])
    torch.testing.assert_close(probabilities, expected.logits.exp(), atol=1e-4, rtol=0)


class Load:
    """Eight polite clients, each on one connection at a time, and two attackers, for as long as the ``with`` takes."""

    def __init__(self, cluster, images):
        self.answers, self.broken = [], []  # image, id, status, headers, body of each; and what was none
        self._cluster, self._bodies = cluster, [raw(image) for image in images]
        self._ids = count()
        self._over = threading.Event()
        targets = [self._client] * CLIENTS + [self._hang_up, self._send_half]
        self._threads = [threading.Thread(target=target) for target in targets]

    def __enter__(self):
        for thread in self._threads:
            thread.start()

    def __exit__(self, *error):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _client(self):
        while not self._over.is_set():
            id = next(self._ids)
            which = id % len(self._bodies)
            try:
                answer = self._cluster.ask("POST", f"/classify?id={id}", self._bodies[which])
            except Exception as error:
                self.broken.append(repr(error))
            else:
                self.answers.append((which, id, *answer))

    def _hang_up(self):
        while not self._over.wait(0.05):
            with suppress(OSError):
                self._begin(self._bodies[0]).close()

    def _send_half(self):
        while not self._over.is_set():
            with suppress(OSError), self._begin(self._bodies[0][:100]) as connection:
                connection.recv(1000)  # until the server has enough of it

    def _begin(self, body):
        head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: {RAW['content-type']}\r\ncontent-length: {LENGTH}"
        connection = socket.create_connection(("127.0.0.1", self._cluster.port), timeout=30)
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        return connection


def test_no_noise_comes_twice_and_the_metrics_of_all_replicas_are_one(model, images, tmp_path):
    with serve(model, 2, tmp_path) as cluster, ThreadPoolExecutor(CLIENTS) as clients:
        bodies = clients.map(lambda _: cluster.ask("POST", "/classify", raw(images[0]))[2], range(80))
        told = {tuple(json.loads(body)["probabilities"]) for body in bodies}

        assert len(told) == 80
        wait_until(lambda: cluster.metric("fastdef_images_total") == 80, 30)
        assert cluster.metric("fastdef_seconds_count") == cluster.metric("fastdef_images_total")


def test_what_was_accepted_is_answered_when_the_server_is_told_to_stop(endless, images, tmp_path):
    with serve(endless, 1, tmp_path, "--longest", "2") as cluster, ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(cluster.ask, "POST", "/classify", raw(image)) for image in images[:2]]
        cluster.ask("GET", "/health")  # went in after them, and has come back
        status = cluster.stop()

        assert status == 0
        assert [answer.result()[0] for answer in answers] == [200, 200]
        assert all(json.loads(answer.result()[2])["steps"] > 0 for answer in answers)


def test_more_requests_than_can_wait_are_503_at_once(endless, images, tmp_path):
    options = ("--longest", "2", "--slots", "1", "--queue", "2")
    with serve(endless, 1, tmp_path, *options) as cluster, ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda _: cluster.ask("POST", "/classify", raw(images[0])), range(16)))

    statuses = [status for status, *_ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(503) >= 16 - 2 * 5  # three in the replica and two before it, and as many once those are out
    assert all(headers["retry-after"] for status, headers, _ in answers if status == 503)
    assert all(json.loads(body)["steps"] > 0 for status, _, body in answers if status == 200)


def serve_run(configuration, replicas, tmp_path):
    """What ``serve run`` makes of a configuration."""
    path = tmp_path / "configuration.yaml"
    path.write_text(json.dumps(configuration))  # which is YAML too
    command = [sys.executable, str(ROOT / "tests" / "serving" / "serve_run.py"), str(path)]
    return started(command, configuration["http_options"]["port"], replicas, tmp_path / "log")


def shipped(model, **args):
    """The configuration that ships, for this machine."""
    configuration = pytest.importorskip("yaml").safe_load((ROOT / "examples" / "ray-serve.yaml").read_text())
    configuration["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    configuration["applications"][0]["args"] |= {"model": str(model), "device": "cpu", "compile": False, **args}
    return configuration


def test_the_shipped_configuration_adds_a_replica_under_load_and_survives_its_death(model, images, tmp_path):
    configuration = shipped(model, replay=True, seed=1)
    configuration["applications"][0]["deployments"][0]["autoscaling_config"] |= {
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
    }
    with serve_run(configuration, 1, tmp_path) as cluster, (load_on := Load(cluster, images)):
        wait_until(lambda: len(cluster.replicas()) == 2, 240)
        so_far = cluster.metric("fastdef_images_total")
        wait_until(lambda: cluster.metric("fastdef_images_total") > so_far + 100, 240)
        os.kill(cluster.replicas()[0], signal.SIGKILL)
        so_far = len(load_on.answers)
        wait_until(lambda: len(load_on.answers) > so_far + 100, 240)

    check(load_on, model, images)


def test_a_replica_whose_thread_has_ended_says_503_and_is_replaced(model, images, tmp_path):
    configuration = shipped(model)
    application = configuration["applications"][0]
    application["import_path"] = "tests.serving.mortal:app"
    application["deployments"][0]["autoscaling_config"]["max_replicas"] = 1
    with serve_run(configuration, 1, tmp_path) as cluster:
        (before,) = cluster.replicas()

        assert cluster.ask("GET", "/die")[0] == 200
        status, headers, _ = cluster.ask("POST", "/classify", raw(images[0]))
        assert status == 503
        assert headers["retry-after"]
        wait_until(lambda: before not in cluster.replicas() and cluster.healthy(), 240)
        assert cluster.ask("POST", "/classify", raw(images[0]))[0] == 200
