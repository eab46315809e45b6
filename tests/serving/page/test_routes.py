import base64
import hashlib
import io
import os
import re
import shutil

import pytest
from PIL import Image

from fastdef.assets import ASSETS
from fastdef.data import load_dataset
from fastdef.serving import Page
from fastdef.serving.page.pictures import png

SHIPPED = ASSETS / "smoothing.safetensors"
WITH = {"authorization": "Bearer secret"}


@pytest.fixture
def page(client, worker, defense):
    return client(worker, name="own", max_bytes=5000, page=Page("secret", defense))


def test_the_page_s_ways_are_not_in_the_interface(page):
    assert not [path for path in page.get("/openapi.json").json()["paths"] if path == "/" or "page" in path]


def test_the_facts_are_those_of_the_server(page):
    assert page.get("/page/facts", headers=WITH).json() == {
        "name": "own",
        "shape": [1, 12, 12],
        "names": list("abcdefghij"),
        "max_bytes": 5000,
        "attack_seconds": 5.0,
        "samples": [],
    }


def test_the_script_and_the_style_of_the_page_alone_may_run(page):
    answer = page.get("/")

    for tag in ("script", "style"):
        (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in answer.headers["content-security-policy"]


def test_an_image_of_any_size_can_be_looked_at(page):
    file = io.BytesIO()
    Image.new("L", (30, 20), 100).save(file, "PNG")

    answer = page.post("/page/look", content=file.getvalue(), headers={**WITH, "content-type": "image/png"})

    assert answer.status_code == 200
    assert len(answer.json()["stages"]) == 3


def test_what_is_no_image_is_400_in_a_line(page):
    answer = page.post("/page/look", content=b"x\ny", headers={**WITH, "content-type": "image/png"})

    assert answer.status_code == 400
    assert "the body" in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_copy_of_the_file_that_ships_has_samples_wherever_it_is(tmp_path):
    copied = shutil.copyfile(SHIPPED, tmp_path / "model.safetensors")

    samples = Page.of_file("secret", None, copied).samples

    assert len(samples) > 1
    assert Page.of_file("secret", None, SHIPPED).samples.labels.tolist() == samples.labels.tolist()


def test_a_file_of_other_bytes_has_none_though_its_size_and_its_time_are_the_same(tmp_path):
    other, bytes_ = tmp_path / "model.safetensors", bytearray(SHIPPED.read_bytes())
    bytes_[-1] ^= 1
    other.write_bytes(bytes_)
    os.utime(other, ns=(SHIPPED.stat().st_atime_ns, SHIPPED.stat().st_mtime_ns))

    assert Page.of_file("secret", None, other).samples is None


def test_a_model_that_is_no_file_here_has_no_samples(tmp_path):
    assert Page.of_file("secret", None, tmp_path / "nowhere").samples is None


def test_who_has_no_token_is_told_what_it_takes(page):
    answer = page.get("/page/facts")

    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "needs the link to the page" in answer.json()["error"]


def test_without_samples_there_is_no_attack(page):
    answer = page.post("/page/attack?kind=static", content=b"", headers=WITH)

    assert answer.status_code == 404


@pytest.fixture
def attacked(client, worker, defense):
    samples = load_dataset("fashion-mnist", "test", root=ASSETS).take(3)
    return client(worker, page=Page("secret", defense, samples)), samples


def test_the_samples_come_with_their_labels(attacked):
    server, dataset = attacked

    told = server.get("/page/facts", headers=WITH).json()["samples"]

    assert [sample["label"] for sample in told] == dataset.labels.tolist()
    assert [sample["class"] for sample in told] == [dataset.classes[label] for label in dataset.labels.tolist()]
    assert [sample["png"] for sample in told] == [png(image) for image in dataset.floats(0, 3)]


def test_an_attack_is_shown_with_its_change_and_its_cost(attacked, images):
    server, _ = attacked
    body = images[0].numpy().astype("<f4").tobytes()
    headers = {**WITH, "content-type": "application/octet-stream"}

    answer = server.post("/page/attack?kind=static&label=2", content=body, headers=headers)
    refused = [
        server.post(f"/page/attack?{query}", content=body, headers=headers)
        for query in ("kind=other", "kind=static&label=10", "kind=static&label=x")
    ]

    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert set(answer.json()) == {"png", "change", "gradients", "seconds", "cut"}
    assert answer.json()["gradients"] == 20
    assert [(one.status_code, set(one.json())) for one in refused] == [(400, {"error"})] * 3
