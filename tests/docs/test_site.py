"""The site builds without a warning, and nothing in it is fetched from elsewhere."""

import re
import subprocess
import sys

import pytest

import fastdef
from tools.readme import PAGES, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
GIVEN = ("run/", "report/", "deployed/", "user/")  # what a reader makes
MARKDOWN = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocstrings", reason="needs fastdef[docs]")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(place)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return place


def test_the_site_has_a_page_for_every_public_name_and_every_command(site):
    for name in fastdef.__all__:
        assert f"fastdef.{name}" in (site / "reference" / name / "index.html").read_text(), name

    commands = (site / "reference" / "commands" / "index.html").read_text()
    assert {"fastdef defend", "fastdef train afa", "fastdef bench defense"} <= set(
        re.findall("fastdef [a-z ]+", commands)
    )
    assert "--triton-repository" in commands


def test_no_page_fetches_anything_from_elsewhere_or_shows_markup(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?://', text), page
        assert not re.findall(r":(?:meth|class|func|data):", text), page


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page):
    for link in LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = (page.parent / target) if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file.read_text()), link


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_that_a_page_names_are_there(page):
    """As `fastdef/nn/_afa.py` or, of the package, `runtime/session.py`; `NAME` stands for any name."""
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|json|safetensors|ipynb))`", page.read_text()):
        if not name.startswith(GIVEN) and "NAME" not in name:
            assert (ROOT / name).exists() or (ROOT / "fastdef" / name).exists(), name


def anchors(text):
    """What headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
