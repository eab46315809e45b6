"""The page in a real browser, from the link that the server printed to an attack."""

import re
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import torch
from PIL import Image

from fastdef.assets import ASSETS
from tests.browser import CHROMIUM, Browser
from tests.waiting import wait_until
from tools.readme import ROOT

READY = "!busy && !document.getElementById('result').hidden"
TEXT = "document.getElementById('{}').textContent"
SHOTS = ROOT / "build"
PATIENT = """
from functools import partial
from fastdef.cli import main
from fastdef.serving.page import attacks, routes
routes.Attacker = partial(attacks.Attacker, seconds=600.0)
attacks._give_way = lambda: None
main()
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    """What ``fastdef serve`` of the shipped model prints, with the time for an attack that a busy machine needs."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-c", PATIENT, "serve", str(ASSETS / "smoothing.safetensors")]
    with log.open("w") as output:
        server = subprocess.Popen([*command, "--no-compile", "--port", "0"], stderr=output, stdout=output)
    wait_until(lambda: server.poll() is not None or "Page at" in log.read_text(), 120)
    yield re.search(r"Page at (\S+)", log.read_text())[1]
    server.terminate()
    server.wait(60)


@pytest.fixture
def browser(tmp_path):
    opened = []

    def start(**window):
        opened.append(Browser(tmp_path / "profile", **window))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def picture(tmp_path, name):
    """A colourful photo that is none of the model's size; on the phone more than a server takes, which it scales."""
    file, size = tmp_path / "photo.png", 700 if name == "phone" else 60
    pixels = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(file)
    return file


WINDOWS = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844, "dark": True}}


@pytest.mark.parametrize("name", WINDOWS)
def test_an_image_is_dropped_seen_and_attacked(name, link, browser, picture):
    SHOTS.mkdir(exist_ok=True)
    page = browser(**WINDOWS[name])
    page.open(link)
    page.until("!document.getElementById('choose').hidden")
    page.drop(picture, 100, 130)
    page.until(READY)
    assert (picture.stat().st_size > 1 << 20) == (name == "phone")
    assert page.js("document.querySelectorAll('#stages img').length") == 3
    assert page.js("document.querySelectorAll('#answers tr').length") == 10
    page.screenshot(SHOTS / f"page-{name}-dropped.png")

    page.js("document.querySelector('#samples button').click()")
    page.until(f"{READY} && {TEXT.format('verdict')}.includes('The label: ankle boot')")
    assert "Undefended: ankle boot" in page.js(TEXT.format("verdict"))
    page.screenshot(SHOTS / f"page-{name}-sample.png")
    for kind, how in (("static", "of the model alone"), ("adaptive", "through the defense")):
        page.js(f"document.getElementById('{kind}').click()")
        page.until(f"{READY} && {TEXT.format('how')}.includes('{how}')")
        assert "Undefended: ankle boot" not in page.js(TEXT.format("verdict"))
        page.screenshot(SHOTS / f"page-{name}-{kind}.png")
    page.js("document.getElementById('back').click()")
    page.until(f"{READY} && document.getElementById('attacked').hidden")
    assert "Undefended: ankle boot" in page.js(TEXT.format("verdict"))

    assert page.js("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out at the side
    assert page.problems == []
    origin = link.partition("#")[0]
    assert all(url.startswith((origin, "data:", "about:")) for url in page.requests)


def test_everything_is_reached_by_the_keyboard(link, browser):
    page = browser(**WINDOWS["desktop"])
    page.open(link)
    page.until("!document.getElementById('choose').hidden")
    focused = "document.activeElement.id || document.activeElement.parentElement.id"

    page.press("Tab", 9)
    assert page.js(focused) == "file"
    page.press("Tab", 9)
    assert page.js(focused) == "samples"
    page.press("Enter", 13, "\r")
    page.until(READY)
    assert page.js(focused) == "samples"  # where it was
    page.js("document.querySelector('#samples button:last-child').focus()")
    reached = []
    for _ in range(3):
        page.press("Tab", 9)
        reached.append(page.js(focused))

    assert reached == ["again", "static", "adaptive"]


def test_without_its_token_the_page_says_where_to_find_it(link, browser):
    page = browser(**WINDOWS["desktop"])
    page.open(link.partition("#")[0])

    page.until(f"{TEXT.format('status')}.includes('Open the link that fastdef serve printed')")
    assert page.js("document.getElementById('choose').hidden")

    page.open(link.partition("#")[0] + "#other")
    page.until(f"{TEXT.format('status')}.includes('needs the link to the page')")


def test_what_is_no_image_is_refused_in_a_line(link, browser, tmp_path):
    page = browser(**WINDOWS["desktop"])
    page.open(link)
    page.until("!document.getElementById('choose').hidden")
    file = tmp_path / "broken.png"
    file.write_bytes(b"not a picture")

    page.drop(file, 100, 200)

    page.until(f"!busy && {TEXT.format('status')}.includes('the body')")
    assert page.js("document.getElementById('result').hidden")


def test_told_so_the_server_has_no_page_and_prints_no_link(tmp_path):
    log, command = tmp_path / "log", [sys.executable, "-m", "fastdef", "serve", str(ASSETS / "smoothing.safetensors")]
    with log.open("w") as output:
        server = subprocess.Popen([*command, "--no-compile", "--port", "0", "--no-page"], stderr=output, stdout=output)
    try:
        wait_until(lambda: server.poll() is not None or "Uvicorn running" in log.read_text(), 120)
        address = re.search(r"http://127.0.0.1:\d+", log.read_text())[0]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/", timeout=60)
    finally:
        server.terminate()
        server.wait(60)

    assert "Page at" not in log.read_text()
