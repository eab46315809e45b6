import base64
import hashlib
import io
import os
import re
import shutil

import pytest
from PIL import Image

from fastdef.assets import ASSETS
from fastdef.serving import Page

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
