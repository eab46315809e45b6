"""The page: what it shows, to whom, and that nobody can make it a burden."""

import json
import threading

import pytest
import torch

from fastdef.assets import ASSETS
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense

RAW = "application/octet-stream"
TOKEN = "secret"
WITH = {"authorization": f"Bearer {TOKEN}"}


def raw(image):
    return image.numpy().astype("<f4").tobytes()


@pytest.fixture
def page(worker, defense):
    from fastdef.serving import Page

    return Page(TOKEN, defense)


@pytest.fixture(scope="module")
def demo():
    """The shipped defense, and three of its images with their labels."""
    dataset = load_dataset("fashion-mnist", "test", root=ASSETS).take(3)
    defense = ActiveDefense.from_checkpoint(load(ASSETS / "smoothing.safetensors"), compile=False, seed=None)
    return defense, dataset


@pytest.fixture
def attacked_server(serve, demo):
    from fastdef.serving import Page, Worker

    defense, dataset = demo
    file = ASSETS / "smoothing.safetensors"
    worker = Worker(defense, (1, 28, 28))
    return serve(worker, shape=(1, 28, 28), classes=dataset.classes, page=Page.of_file(TOKEN, defense, file))


@pytest.mark.parametrize(
    ("page", "host", "there"),
    [
        (None, "127.0.0.1", True),
        (None, "::1", True),
        (None, "localhost", True),
        (None, "0.0.0.0", False),
        (None, "::", False),
        (None, "192.168.1.5", False),
        (None, "example.org", False),
        (True, "0.0.0.0", True),
        (False, "127.0.0.1", False),
    ],
)
def test_there_is_a_page_where_only_this_machine_asks_or_where_somebody_wants_it(page, host, there):
    from fastdef.serving import make_token

    token = make_token(page, host)

    assert (token is not None) == there
    assert token is None or token != make_token(page, host)


def test_without_a_page_there_is_no_way_to_what_it_shows(serve, worker, images):
    server = serve(worker)

    for method, path in (("GET", "/"), ("GET", "/page/facts"), ("POST", "/page/look"), ("POST", "/page/attack")):
        assert server.ask(method, path, raw(images[0]), content_type=RAW, **WITH)[0] == 404, path
    answered = json.loads(server.ask("POST", "/classify", raw(images[0]), content_type=RAW)[2])
    assert set(answered) == {"class", "label", "probability", "probabilities", "steps", "converged", "expired"}


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer other"}, {"authorization": "Bearer sécret"}])
def test_who_has_not_the_token_learns_nothing(serve, worker, page, images, header):
    server = serve(worker, page=page)

    for method, path in (("GET", "/page/facts"), ("POST", "/page/look"), ("POST", "/page/attack?kind=static")):
        status, _, body = server.ask(method, path, raw(images[0]), content_type=RAW, **header)
        assert status == 401, path
        assert set(json.loads(body)) == {"error"}
    assert TOKEN.encode() not in server.ask("GET", "/")[2]


def test_the_page_may_load_and_ask_nothing_but_itself(serve, worker, page):
    status, headers, body = serve(worker, page=page).ask("GET", "/")

    policy = headers["content-security-policy"]
    assert status == 200
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert b"://" not in body


def test_the_stages_are_those_of_the_answer(worker, defense, images):
    from fastdef.serving.page.look import describe_stages

    reply = worker.submit(images[0], id=7).result()

    told = describe_stages(defense, images[0], reply, "abcdefghij")

    smoothed = defense.smooth(images[:1], ids=torch.tensor([7]))
    _, noised, smooth = (stage["loss"] for stage in told["stages"])
    assert told["steps"] == int(smoothed.steps)
    assert smooth == pytest.approx(float(smoothed.loss), rel=1e-4)
    assert noised > defense.delta >= smooth
    for stage in told["stages"]:
        assert float(torch.tensor(stage["map"]).mean()) == pytest.approx(stage["loss"], rel=1e-2)


def test_a_look_shows_both_answers_and_every_stage(serve, worker, page, defense, images):
    server = serve(worker, page=page)

    status, headers, body = server.ask("POST", "/page/look", raw(images[0]), content_type=RAW, **WITH)

    told = json.loads(body)
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert [stage["name"] for stage in told["stages"]] == ["seen", "noised", "smoothed"]
    assert all(stage["png"].startswith("data:image/png;base64,") for stage in told["stages"])
    with torch.no_grad():
        undefended = defense.model(images[:1])[0].softmax(0)
    assert [answer["undefended"] for answer in told["answers"]] == pytest.approx(undefended.tolist(), abs=1e-5)
    assert sum(answer["defended"] for answer in told["answers"]) == pytest.approx(1, abs=1e-4)


def test_a_model_of_one_s_own_has_no_attacks_and_no_samples(serve, worker, page, images):
    server = serve(worker, page=page)

    status, _, body = server.ask("POST", "/page/attack?kind=static", raw(images[0]), content_type=RAW, **WITH)

    assert status == 404
    assert b"the model of the demo" in body
    assert json.loads(server.ask("GET", "/page/facts", **WITH)[2])["samples"] == []


@pytest.mark.parametrize("kind", ["static", "adaptive"])
def test_an_attack_stays_in_the_ball_and_does_harm(demo, kind, monkeypatch):
    import asyncio

    from fastdef.serving.page import attacks

    monkeypatch.setattr(attacks, "_ITERATIONS", 4)  # and no end by the clock: who attacks gives way to all others
    defense, dataset = demo
    image, label = dataset.floats(0, 1)[0], int(dataset.labels[0])

    made = asyncio.run(attacks.Attacker(defense, seconds=600.0).attack(kind, image, label))

    assert float((made.image - image).abs().max()) <= attacks.EPS + 1e-6
    torch.testing.assert_close(made.image * 255, (made.image * 255).round())
    with torch.no_grad():
        before, after = (float(defense.model(one[None]).softmax(1)[0, label]) for one in (image, made.image))
    assert after < before


def test_an_attack_that_had_no_time_is_503_and_none_is_shown(attacked_server, demo, monkeypatch):
    from fastdef.serving.page import attacks

    def late(*given, **settings):
        raise TimeoutError

    monkeypatch.setattr(attacks, "search", late)

    status, headers, body = attacked_server.ask(
        "POST", "/page/attack?kind=adaptive", raw(demo[1].floats(0, 1)[0]), content_type=RAW, **WITH
    )

    assert (status, headers["retry-after"]) == (503, "5")
    assert b"too busy for an attack: 0 of at least 20 gradients in 5 s" in body


def test_one_attack_at_a_time_and_others_are_served_meanwhile(attacked_server, demo, monkeypatch):
    from fastdef.serving.page import attacks

    server, (_, dataset) = attacked_server, demo
    began, end = threading.Event(), threading.Event()

    def endless(*given, **settings):
        began.set()
        assert end.wait(60)
        return given[1]

    monkeypatch.setattr(attacks, "pgd", endless)
    body, statuses = raw(dataset.floats(0, 1)[0]), []

    def attack():
        return server.ask("POST", "/page/attack?kind=static", body, content_type=RAW, **WITH)

    first = threading.Thread(target=lambda: statuses.append(attack()[0]))
    first.start()
    assert began.wait(60)
    second, headers, reason = attack()
    served = server.ask("POST", "/classify", body, content_type=RAW)[0]
    end.set()
    first.join()

    assert (second, served, statuses) == (503, 200, [200])
    assert headers["retry-after"] == "5"
    assert b"one attack at a time" in reason
    assert attack()[0] == 200  # what ended makes room


@pytest.mark.parametrize("query", ["kind=other", "", "kind=static&label=10", "kind=static&label=x"])
def test_an_attack_that_is_none_is_400_and_makes_room(attacked_server, demo, query):
    body = raw(demo[1].floats(0, 1)[0])

    status, _, reason = attacked_server.ask("POST", f"/page/attack?{query}", body, content_type=RAW, **WITH)

    assert status == 400
    assert "needs" in json.loads(reason)["error"]
    assert attacked_server.ask("POST", "/page/attack?kind=static", body, content_type=RAW, **WITH)[0] == 200
