import io
import json
import random
import threading
import time

import pytest
import torch
from PIL import Image

from tests.waiting import wait_until

SHAPE = (1, 12, 12)
RAW = "application/octet-stream"


def raw(image):
    return image.numpy().astype("<f4").tobytes()


def form(*files):
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(head + file + b"\r\n" for file in files) + b"--x--\r\n"


def test_every_form_of_an_image_gets_the_same_answer(serve, worker, images):
    server = serve(worker, replay=True)
    pixels = (images[0] * 255).round().to(torch.uint8)
    image = pixels.float() / 255
    file = io.BytesIO()
    Image.fromarray(pixels[0].numpy()).save(file, "PNG")

    bodies = {
        RAW: raw(image),
        "image/png": file.getvalue(),
        "application/json": json.dumps({"image": image.tolist()}).encode(),
        "multipart/form-data; boundary=x": form(file.getvalue()),
    }
    answers = [server.ask("POST", "/classify?id=7", body, content_type=kind) for kind, body in bodies.items()]

    assert [status for status, _, _ in answers] == [200] * 4
    answered = [json.loads(body) for _, _, body in answers]
    assert answered[0] == answered[1] == answered[2] == answered[3]
    assert answered[0]["id"] == 7
    assert answered[0]["class"] == "abcdefghij"[answered[0]["label"]]
    assert abs(sum(answered[0]["probabilities"]) - 1) < 1e-5


def test_an_image_file_of_another_size_is_scaled_where_the_server_says_so(serve, worker, defense):
    file = io.BytesIO()
    Image.new("L", (24, 24), 100).save(file, "PNG")

    status, _, body = serve(worker, replay=True, resize=True).ask(
        "POST", "/classify?id=7", file.getvalue(), content_type="image/png"
    )

    same = torch.full(SHAPE, 100 / 255)
    expected = defense.defend(same[None], ids=torch.tensor([7]))
    assert status == 200
    assert json.loads(body)["steps"] == int(expected.steps)
    torch.testing.assert_close(torch.tensor(json.loads(body)["probabilities"]), expected.logits[0].exp())


def test_a_request_s_image_is_what_a_viewer_shows(serve, worker):
    server = serve(worker, replay=True, background="white")
    bodies = []
    for image in (Image.new("LA", (12, 12), (0, 0)), Image.new("L", (12, 12), 255)):
        file = io.BytesIO()
        image.save(file, "WEBP", lossless=True)
        bodies.append(file.getvalue())

    (status, _, laid), (_, _, white) = (
        server.ask("POST", "/classify?id=7", body, content_type="image/webp") for body in bodies
    )

    assert status == 200
    assert json.loads(laid)["probabilities"] == json.loads(white)["probabilities"]
    metrics = server.ask("GET", "/metrics")[2].decode()
    assert 'fastdef_treated_total{how="laid on the background (255, 255, 255)"} 1.0' in metrics


def test_a_transparent_image_is_refused_without_a_background(serve, worker):
    file = io.BytesIO()
    Image.new("LA", (12, 12), (0, 0)).save(file, "PNG")

    status, _, body = serve(worker).ask("POST", "/classify", file.getvalue(), content_type="image/png")

    assert status == 400
    assert "the body needs every pixel opaque" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "reason"),
    [
        ("/classify", b"", RAW, 400, "needs 576 bytes of float32"),
        ("/classify", raw(torch.full(SHAPE, torch.nan)), RAW, 400, "NaN or Inf"),
        ("/classify", b"\x89PNG\r\n\x1a\nrubbish", "image/png", 400, "not a whole PNG, JPEG"),
        ("/classify", b'{"image": [[[0.5]]]}', "application/json", 400, "shape (1, 12, 12), got (1, 1, 1)"),
        ("/classify", b'{"image": "x"}', "application/json", 400, "needs JSON such as"),
        ("/classify", b"[" * 100_000, "application/json", 400, "needs JSON such as"),
        ("/classify", form(), "multipart/form-data; boundary=x", 400, "a form with one file, got 0"),
        ("/classify", form(b"", b""), "multipart/form-data; boundary=x", 400, "a form with one file"),
        ("/classify", b"rubbish", "multipart/form-data", 400, "a form with one file"),
        ("/classify", b"{}", "text/plain", 415, "needs content-type"),
        ("/classify", b"0" * 700_000, RAW, 413, "at most 600000 bytes"),
        ("/classify?deadline=soon", raw(torch.zeros(SHAPE)), RAW, 400, "needs deadline as a number, got 'soon'"),
        ("/classify?deadline=-1", raw(torch.zeros(SHAPE)), RAW, 400, "a deadline above 0"),
        ("/classify?id=3", raw(torch.zeros(SHAPE)), RAW, 400, "id is for a server with --replay"),
    ],
)
def test_a_refusal_is_one_line_with_its_status(serve, worker, path, body, kind, status, reason):
    server = serve(worker, max_bytes=600_000)

    got, _, answer = server.ask("POST", path, body, content_type=kind)

    error = json.loads(answer)["error"]
    assert got == status
    assert reason in error
    assert "\n" not in error


def test_without_replay_nobody_learns_or_chooses_the_noise(serve, worker, images):
    server = serve(worker)

    answers = [json.loads(server.ask("POST", "/classify", raw(images[0]), content_type=RAW)[2]) for _ in range(4)]

    assert all("id" not in answer for answer in answers)
    assert len({answer["probability"] for answer in answers}) == 4


def test_health_and_metrics_tell_what_happened(serve, worker, images):
    server = serve(worker)
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
    from fastdef.serving import Worker

    gate, noise = threading.Event(), defense.noise
    defense.noise = lambda *given: gate.wait(60) and noise(*given)
    worker = Worker(defense, SHAPE, queue_size=1)
    for _ in range(worker.capacity):
        worker.submit(images[0])
    server = serve(worker)

    status, headers, _ = server.ask("POST", "/classify", raw(images[2]), content_type=RAW)
    gate.set()

    assert status == 503
    assert int(headers["retry-after"]) >= 1


def test_an_image_whose_smoothing_never_began_is_503(serve, defense, images):
    from fastdef.serving import Worker

    gate, noise = threading.Event(), defense.noise
    defense.noise = lambda *given: gate.wait(60) and noise(*given)  # before a worker has begun to use it
    worker = Worker(defense, SHAPE)
    worker.submit(images[0])
    server = serve(worker)

    def open_late():
        wait_until(lambda: worker._unanswered == 2)
        time.sleep(0.1)  # longer than the deadline
        gate.set()

    threading.Thread(target=open_late).start()

    status, headers, body = server.ask("POST", "/classify?deadline=0.05", raw(images[1]), content_type=RAW)

    assert status == 503
    assert "before the smoothing began" in json.loads(body)["error"]
    assert int(headers["retry-after"]) >= 1
    assert "fastdef_never_begun_total 1.0" in server.ask("GET", "/metrics")[2].decode()


def test_a_classifier_that_gives_nan_is_500(serve, worker, defense, images):
    model = defense.model.forward
    defense.model.forward = lambda x: torch.full_like(model(x), torch.nan)
    server = serve(worker)

    status, _, body = server.ask("POST", "/classify", raw(images[0]), content_type=RAW)

    assert status == 500
    assert "not finite" in json.loads(body)["error"]


def test_the_page_of_the_interface_lists_every_way_in(serve, worker):
    server = serve(worker)

    paths = json.loads(server.ask("GET", "/openapi.json")[2])["paths"]

    assert {"/classify", "/health", "/metrics", "/v2/health/ready", "/v2/models/{name}/infer"} <= set(paths)
    assert "multipart/form-data" in paths["/classify"]["post"]["requestBody"]["content"]
    assert server.ask("GET", "/docs")[0] == 200


def test_clients_are_not_mixed_up_and_malformed_requests_harm_nobody(serve, worker, defense, images):
    """Eight clients at once, one request in ten malformed: every answer is the one of its own image and id."""
    server, wrong, answered = serve(worker, replay=True), [], []

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
    for (_, id, _, answer), logits in zip(answered, expected.logits, strict=True):
        assert answer["id"] == id
        torch.testing.assert_close(torch.tensor(answer["probabilities"]), logits.exp(), rtol=1e-3, atol=1e-4)


def test_the_interface_says_that_an_image_is_required(client, worker):
    schema = client(worker).get("/openapi.json").json()

    assert schema["paths"]["/classify"]["post"]["requestBody"]["required"] is True


def test_a_worker_that_has_ended_is_not_healthy(client, worker):
    server = client(worker)
    worker.close()

    answer = server.get("/health")

    assert (answer.status_code, answer.json()) == (503, {"ok": False, "waiting": 0})


def test_an_application_that_shuts_down_closes_its_worker(client, worker):
    with client(worker) as server:
        assert server.get("/health").status_code == 200

    assert not worker.alive


def test_the_metrics_are_those_of_all_that_answer_beside_it(client, worker):
    async def merge(own):
        return own + b"# and those of others\n"

    answer = client(worker, merge=merge).get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain")
    assert "fastdef_images_total 0.0" in answer.text
    assert answer.text.endswith("# and those of others\n")
    assert "others" not in client(worker).get("/metrics").text


def test_a_colour_that_is_none_is_refused_before_a_request_comes(client, worker):
    with pytest.raises(ValueError, match="colour"):
        client(worker, background="x")
