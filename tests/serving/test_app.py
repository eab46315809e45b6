import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from PIL import Image

SHAPE = (1, 12, 12)
RAW = "application/octet-stream"


def raw(image):
    return image.numpy().astype("<f4").tobytes()


def test_every_form_of_an_image_gets_the_same_answer(serve, batcher, images):
    server = serve(batcher, replay=True)
    pixels = (images[0] * 255).round().to(torch.uint8)
    image = pixels.float() / 255
    file = io.BytesIO()
    Image.fromarray(pixels[0].numpy()).save(file, "PNG")

    bodies = {
        RAW: raw(image),
        "image/png": file.getvalue(),
        "application/json": json.dumps({"image": image.tolist()}).encode(),
    }
    answers = [server.ask("POST", "/classify?id=7", body, content_type=kind) for kind, body in bodies.items()]

    assert [status for status, _, _ in answers] == [200, 200, 200]
    told = [json.loads(body) for _, _, body in answers]
    assert told[0] == told[1] == told[2]
    assert told[0]["id"] == 7
    assert told[0]["class"] == "abcdefghij"[told[0]["label"]]
    assert abs(sum(told[0]["probabilities"]) - 1) < 1e-5


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "reason"),
    [
        ("/classify", b"", RAW, 400, "needs 576 bytes of float32"),
        ("/classify", raw(torch.full(SHAPE, torch.nan)), RAW, 400, "NaN or Inf"),
        ("/classify", b"\x89PNG\r\n\x1a\nrubbish", "image/png", 400, "not a whole PNG or JPEG"),
        ("/classify", b'{"image": [[[0.5]]]}', "application/json", 400, "shape (1, 12, 12), got (1, 1, 1)"),
        ("/classify", b'{"image": "x"}', "application/json", 400, "needs JSON such as"),
        ("/classify", b"[" * 100_000, "application/json", 400, "needs JSON such as"),
        ("/classify", b"{}", "text/plain", 415, "needs content-type"),
        ("/classify", b"0" * 700_000, RAW, 413, "at most 600000 bytes"),
        ("/classify?deadline=soon", raw(torch.zeros(SHAPE)), RAW, 400, "needs deadline as a number, got 'soon'"),
        ("/classify?deadline=-1", raw(torch.zeros(SHAPE)), RAW, 400, "a deadline above 0"),
        ("/classify?id=3", raw(torch.zeros(SHAPE)), RAW, 400, "id is for a server with --replay"),
    ],
)
def test_a_refusal_is_one_line_with_its_status(serve, batcher, path, body, kind, status, reason):
    server = serve(batcher, max_bytes=600_000)

    got, _, answer = server.ask("POST", path, body, content_type=kind)

    told = json.loads(answer)["error"]
    assert got == status
    assert reason in told
    assert "\n" not in told


def test_without_replay_nobody_learns_or_chooses_the_noise(serve, batcher, images):
    server = serve(batcher)

    answers = [json.loads(server.ask("POST", "/classify", raw(images[0]), content_type=RAW)[2]) for _ in range(4)]

    assert all("id" not in answer for answer in answers)
    assert len({answer["probability"] for answer in answers}) == 4


def test_health_and_metrics_tell_what_happened(serve, batcher, images):
    server = serve(batcher)
    for image in images[:3]:
        server.ask("POST", "/classify", raw(image), content_type=RAW)
    server.ask("POST", "/classify", b"", content_type=RAW)

    status, _, health = server.ask("GET", "/health")
    text = server.ask("GET", "/metrics")[2].decode()

    assert (status, json.loads(health)) == (200, {"ok": True, "waiting": 0})
    assert "fastdef_images_total 3.0" in text
    assert 'fastdef_refused_total{status="400"} 1.0' in text
    assert "fastdef_seconds_bucket" in text
    steps = next(line for line in text.splitlines() if line.startswith("fastdef_steps_total"))
    assert float(steps.split()[1]) > 0


def test_a_full_queue_is_503_with_a_time_to_come_again(serve, defense, images):
    from fastdef.serving import Batcher

    batcher = Batcher(defense, SHAPE, queue_size=1)
    gate, noise = threading.Event(), defense.noise
    defense.noise = lambda *given: gate.wait(60) and noise(*given)
    batcher.submit(images[0])
    while batcher.waiting:
        time.sleep(0.01)
    batcher.submit(images[1])
    server = serve(batcher)

    status, headers, _ = server.ask("POST", "/classify", raw(images[2]), content_type=RAW)
    gate.set()

    assert status == 503
    assert int(headers["retry-after"]) >= 1


def test_clients_are_not_mixed_up_and_malformed_requests_harm_nobody(serve, batcher, defense, images):
    """Eight clients at once, one request in ten malformed: every answer is the one of its own image and id."""
    server, wrong, answered = serve(batcher, replay=True), [], []

    def client(number):
        chance = random.Random(number)
        for turn in range(12):
            if chance.random() < 0.1:
                status, _, _ = server.ask("POST", "/classify", b"rubbish", content_type=RAW)
                wrong.extend([status] if status != 400 else [])
                continue
            which, id = chance.randrange(len(images)), 1000 * number + turn
            status, _, body = server.ask("POST", f"/classify?id={id}", raw(images[which]), content_type=RAW)
            answered.append((which, id, status, json.loads(body)))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert {status for _, _, status, _ in answered} == {200}
    expected = defense.defend(
        torch.stack([images[which] for which, *_ in answered]), ids=torch.tensor([id for _, id, *_ in answered])
    )
    for (_, id, _, told), logits in zip(answered, expected.logits, strict=True):
        assert told["id"] == id
        torch.testing.assert_close(torch.tensor(told["probabilities"]), logits.exp(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_command_serves_and_finishes_what_it_accepted_when_told_to_stop(tmp_path):
    from fastdef.assets import ASSETS

    command = [sys.executable, "-m", "fastdef", "serve", str(ASSETS / "smoothing.safetensors"), "--no-compile"]
    process = subprocess.Popen([*command, "--port", "8765"], stderr=subprocess.PIPE, text=True)
    url, answers = "http://127.0.0.1:8765", []
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{url}/health")
            break
        except OSError:
            time.sleep(0.1)

    def ask():
        body = torch.rand(1, 28, 28).numpy().astype("<f4").tobytes()
        request = urllib.request.Request(f"{url}/classify", body, {"content-type": RAW})
        answers.append(urllib.request.urlopen(request).status)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    process.communicate(timeout=60)

    assert answers == [200] * 6
    assert process.returncode in (0, -signal.SIGTERM)
