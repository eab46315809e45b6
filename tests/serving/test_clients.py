"""Clients that are impatient, slow or hostile: the polite one after them is answered, and soon."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from PIL import Image

from tests.waiting import wait_until

SHAPE = (1, 12, 12)
RAW = "application/octet-stream"


def raw(image):
    return image.numpy().astype("<f4").tobytes()


@pytest.fixture
def log(capfd):
    """What the server has logged since last asked."""
    return lambda: capfd.readouterr().err


def test_clients_that_hang_up_leave_no_work_behind(serve, defense, images, rough, log):
    """Two hundred ask for what would take for ever, and leave at once."""
    from fastdef.serving import Worker

    worker = Worker(defense, SHAPE, longest=600.0)
    server = serve(worker, replay=True)
    body = raw(images[5])
    for _ in range(200):
        head = f"POST /classify?id={rough} HTTP/1.1\r\nhost: x\r\ncontent-type: {RAW}\r\ncontent-length: {len(body)}"
        server.connect(f"{head}\r\n\r\n".encode() + body).close()

    status, _, answer = server.ask("POST", "/classify?id=0", raw(images[0]), content_type=RAW)

    assert status == 200
    assert json.loads(answer)["steps"] == defense.defend(images[:1]).steps[0]
    wait_until(lambda: worker._unanswered == 0 and not worker._jobs)
    assert log() == ""


def test_a_body_that_stops_coming_is_408_and_its_connection_ends(serve, worker, images):
    server = serve(worker, body_seconds=0.3)
    connection = server.post(raw(images[0])[:100], length=576)

    answer = receive_all(connection)  # which ends where the connection does

    connection.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"needs a body within 0.3 s" in answer


def test_a_body_that_is_too_long_is_413_before_a_byte_of_it_is_read(serve, worker):
    server = serve(worker, body_seconds=60.0)
    connection = server.post(b"", length=1 << 40)

    answer = connection.recv(1000)

    assert answer.startswith(b"HTTP/1.1 413")
    connection.close()


def test_a_body_without_a_length_is_413_at_the_byte_too_much(serve, worker):
    server = serve(worker, max_bytes=5000)
    head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: {RAW}\r\ntransfer-encoding: chunked\r\n\r\n"
    connection = server.connect(
        head.encode() + b"1000\r\n" + b"0" * 4096 + b"\r\n" + b"1000\r\n" + b"0" * 4096 + b"\r\n"
    )

    answer = connection.recv(1000)

    assert answer.startswith(b"HTTP/1.1 413")
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "expected"), [("POST", "/classify", 413), ("POST", "/nowhere", 404), ("POST", "/health", 405)]
)
def test_a_client_that_is_refused_while_it_sends_reads_why(serve, worker, method, path, expected):
    """Eight megabytes, which no buffer between the two holds: a reset would overtake the answer."""
    server = serve(worker, max_bytes=1 << 20)

    statuses = {server.ask(method, path, bytes(8 << 20), content_type=RAW)[0] for _ in range(10)}

    assert statuses == {expected}


def test_a_client_that_sends_for_ever_is_cut_off(serve, worker):
    server = serve(worker, body_seconds=0.5)
    connection = server.post(b"", length=1 << 40)
    connection.settimeout(30)

    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        connection.sendall(bytes(1 << 30))

    connection.close()


def test_who_leaves_within_the_body_is_no_traceback(serve, worker, images, log):
    server = serve(worker)
    for _ in range(20):
        server.post(raw(images[0])[:100], length=576).close()

    assert server.ask("POST", "/classify", raw(images[0]), content_type=RAW)[0] == 200
    assert log() == ""


def test_a_thousand_idle_connections_keep_nobody_out_and_fill_no_log(serve, worker, images, log):
    """Half of them say nothing, half a part of a head: the ones that were silent longest make room."""
    server = serve(worker, listening={"connections": 50})
    connections = [server.connect(b"POST /cl" if number % 2 else b"") for number in range(1000)]

    status, _, _ = server.ask("POST", "/classify", raw(images[0]), content_type=RAW)

    assert status == 200
    assert len(server.server.server_state.connections) <= 51
    assert log() == ""
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"POST /cl", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /he"])
def test_a_connection_without_a_whole_head_is_closed_in_time(serve, worker, sent):
    server = serve(worker, listening={"head_seconds": 2.0, "timeout_keep_alive": 60})
    connection = server.connect(sent)
    connection.settimeout(30)

    received = receive_all(connection)

    assert received.startswith(b"HTTP/1.1 200") if b"health" in sent else received == b""
    connection.close()


def test_a_request_that_is_no_http_fills_no_log(serve, worker, log):
    server = serve(worker)
    for _ in range(50):
        connection = server.connect(b"\x16\x03\x01 rubbish\r\n\r\n")
        assert b"400" in receive_all(connection)
        connection.close()

    assert log() == ""


def test_a_request_in_work_outlives_the_time_for_a_head(serve, defense, images):
    from fastdef.serving import Worker

    noise = defense.noise
    defense.noise = lambda *given: time.sleep(3.0) or noise(*given)
    server = serve(Worker(defense, SHAPE), listening={"head_seconds": 2.0})

    assert server.ask("POST", "/classify", raw(images[0]), content_type=RAW)[0] == 200


def test_a_huge_picture_is_refused_by_its_size_and_health_answers_meanwhile(serve, worker, monkeypatch):
    from fastdef.serving import bodies

    file = io.BytesIO()
    Image.new("L", (8192, 8192)).save(file, "PNG")
    server, decode, refused = serve(worker), bodies.decode_image, []
    began, gate = threading.Event(), threading.Event()

    def held(*given, **options):
        began.set()
        assert gate.wait(60)
        return decode(*given, **options)

    def send():
        refused.append(server.ask("POST", "/classify", file.getvalue(), content_type="image/png"))

    monkeypatch.setattr(bodies, "decode_image", held)
    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert began.wait(60)
    health = server.ask("GET", "/health")[0]

    assert (health, refused) == (200, [])
    gate.set()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in refused} == {400}
    assert all(b"8192" in body for _, _, body in refused)


@pytest.fixture
def process(tmp_path):
    """``fastdef serve`` of the shipped model, and its address."""
    started = []

    def start(*options):
        from fastdef.assets import ASSETS

        command = [sys.executable, "-m", "fastdef", "serve", str(ASSETS / "smoothing.safetensors"), "--no-compile"]
        output = (tmp_path / "log").open("w+")
        process = subprocess.Popen([*command, "--port", "0", *options], stderr=output, stdout=output)
        started.append((process, output))
        wait_until(lambda: process.poll() is not None or "Uvicorn running" in (tmp_path / "log").read_text(), 60)
        port = int(re.search(r"http://127.0.0.1:(\d+)", (tmp_path / "log").read_text())[1])
        wait_until(lambda: healthy(port), 60)
        return process, port, tmp_path / "log"

    yield start
    for process, output in started:
        process.kill()
        process.wait()
        output.close()


def test_told_to_stop_it_does_so_though_a_body_is_half_there(process):
    process, port, log = process("--body-seconds", "60", "--grace", "1")
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 900\r\n\r\nxx"
    )
    wait_until(lambda: healthy(port))  # asked later than the half body was sent, and answered

    process.send_signal(signal.SIGTERM)

    process.wait(timeout=30)
    assert "Finished server process" in log.read_text()  # uvicorn ends by the signal that it was sent, in the end
    assert "Traceback" not in log.read_text()
    connection.close()


def test_told_to_stop_it_fails_what_takes_longer_than_the_grace(serve, defense, images, rough, log):
    from fastdef.serving import Worker

    worker = Worker(defense, SHAPE, longest=600.0)
    server = serve(worker, replay=True, grace=0.3)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(server.ask("POST", f"/classify?id={rough}", raw(images[5]), content_type=RAW))
    )
    thread.start()
    wait_until(lambda: worker._unanswered == 1)

    server.stop()
    thread.join()

    assert answers[0][0] == 503
    assert "shut down before" in json.loads(answers[0][2])["error"]
    assert log() == ""


def test_told_to_stop_it_finishes_what_it_accepted(process):
    process, port, log = process()
    body = raw(torch.rand(1, 28, 28))
    head = f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: {RAW}\r\ncontent-length: {len(body)}\r\n\r\n"
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(6)]
    for connection in connections:
        connection.sendall(head.encode() + body)
    assert healthy(port)  # who was there before has been read

    process.send_signal(signal.SIGTERM)
    answers = [receive_all(connection) for connection in connections]

    for connection in connections:
        connection.close()
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 6
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_several_workers_answer_and_count_together(process):
    process, port, log = process("--workers", "2")
    wait_until(lambda: log.read_text().count("startup complete") == 2, 60)

    for _ in range(8):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/classify", raw(torch.rand(1, 28, 28)), {"content-type": RAW})
        assert connection.getresponse().status == 200
        connection.close()
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    process.send_signal(signal.SIGTERM)

    assert "fastdef_images_total 8.0" in metrics
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def healthy(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


def receive_all(connection):
    received = b""
    while part := connection.recv(4096):
        received += part
    return received
