"""Every code block of the README and of the pages in docs does its work, in the order of its page.

Numbers are made smaller, by the two tables below, and nothing is compiled; all else is what a reader runs.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time

import pytest

from fastdef.cli import main
from fastdef.defense import ActiveDefense
from tests.docs.blocks import blocks_of, furnish
from tests.timm_import import import_timm
from tools.readme import PAGES, ROOT

TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
WITH_BLOCKS = [name for name, text in TEXTS.items() if blocks_of(text)]
SLOW = {  # they export with the check, train, or start processes
    "docs/howto/export.md",
    "docs/howto/machines.md",
    "docs/howto/train.md",
    "docs/performance.md",
    "docs/quickstart.md",
    "docs/results.md",
}

SMALLER = {
    "wrn-28-10": "wrn-10-1",
    "wrn-10-2": "wrn-10-1",
    "224": "32",
    'budget="smoke")': 'budget="smoke", rows=[2])',
    "--batch-size 1024": "--batch-size 10",
    "--branches 5": "--branches 2",
}
BRIEF = {
    "train": "--epochs 1 --batch-size 10 --limit 20 --no-compile",
    "train afa": "--fusing-epochs 1",
    "calibrate": "--max-steps 4",
    "evaluate": "--limit 2 --steps 1 --no-compile",
    "evaluate-adaptive": "--budget smoke --rows 0,2 --limit 2 --no-compile",
    "evaluate-afa": "--limit 2 --steps 1 --eps 0,8",
    "export": "--limit 2",
    "import": "--limit 4",
    "serve": "--no-compile",
    "bench defense": "--architecture wrn-10-1 --limit 4 --batch-size 2 --turns 1 --half none",
    "bench formats": "--architecture wrn-10-1 --batches 1 --turns 1",
}
_TABLE = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
EXTRAS = set(re.findall(r"^(\w+) = \[", _TABLE, re.MULTILINE))  # without tomllib, which Python 3.10 lacks
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.*namespace:DeprecationWarning")  # Foolbox's, on its import
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in WITH_BLOCKS]
)
def test_every_block_of_a_page_runs(name, tmp_path, monkeypatch, servers, capsys):
    timm = import_timm()
    furnish(tmp_path, TEXTS[name], timm.create_model)
    monkeypatch.chdir(tmp_path)
    reader = Reader(monkeypatch, servers, BRIEF if name in SLOW else {**BRIEF, "export": "--no-check"})

    for block in blocks_of(TEXTS[name]):
        sys.stderr.write(f"{name}:{block.line}\n")
        reader.run(block)
    reader.leave()


def test_a_block_that_fails_is_found(tmp_path, monkeypatch, servers, capsys):
    monkeypatch.chdir(tmp_path)
    reader = Reader(monkeypatch, servers)

    for text in (
        "```python\nimport fastdef\nfastdef.load('missing')\n```",
        "```sh\nfastdef defend missing photos\n```",
        "```sh\nmake nothing\n```",
        "```sh\npip install -e '.[nothing]'\n```",
        "```sh\nsomething else\n```",
        "```\nno language\n```",
    ):
        (block,) = blocks_of(text)
        with pytest.raises((AssertionError, ValueError)):
            reader.run(block)


@pytest.fixture
def servers(monkeypatch):
    """The HTTP servers that were made, and are to be told to stop."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs fastdef[serve]")
    made, begin = [], uvicorn.Server.__init__
    monkeypatch.setattr(uvicorn.Server, "__init__", lambda self, config: (made.append(self), begin(self, config))[1])
    yield made
    for server in made:
        server.should_exit = True


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    monkeypatch.setitem(ActiveDefense.__init__.__kwdefaults__, "compile", False)


class Reader:
    """Someone who types what a page says, block by block, into one Python and one shell."""

    def __init__(self, monkeypatch, servers, brief=BRIEF):
        self._monkeypatch = monkeypatch
        self._servers = servers
        self._brief = brief
        self._names = {"__name__": "__main__"}
        self._serving = []

    def run(self, block):
        """Do what a block says; an AssertionError or whatever it raises where it fails."""
        text = block.text
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        if block.language == "python":
            self._python(text, block.line)
        else:
            assert block.language == "sh", f"a block needs to be python or sh, got {block.language!r}"
            for line in text.replace("\\\n", " ").splitlines():
                self._shell(shlex.split(line, comments=True))

    def leave(self):
        """Stop what is served."""
        for server in self._servers:
            server.should_exit = True
        for thread in self._serving:
            thread.join(60)
            assert not thread.is_alive()

    def _python(self, text, line):
        code = compile("\n" * line + text.replace("8000", "0"), "page", "exec")
        if "fastdef.serve(" in text:
            self._serve(lambda: exec(code, self._names))
        else:
            exec(code, self._names)

    def _shell(self, words):
        match words:
            case [] | [".", ".venv/bin/activate"]:
                pass
            case ["make", *targets]:
                assert set(targets) <= TARGETS, targets
            case ["pip", "install", *what]:
                extras = set(re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", " ".join(what)))))
                assert extras <= EXTRAS, extras
            case ["curl", *arguments]:
                self._curl(arguments)
            case ["ray", "start", "--head"]:
                pass  # tests/serving/test_cluster.py has a cluster
            case ["serve", "deploy", configuration]:
                assert (ROOT / configuration).is_file(), configuration
            case ["torchrun", *arguments]:
                self._torchrun(arguments)
            case ["docker" | "kubectl" | "python", *arguments]:  # tests/serving/test_deploy.py runs what can be run
                for name in arguments:
                    assert (ROOT / name).exists() or not name.startswith("examples/"), name
            case ["fastdef", "serve", *arguments]:
                at = arguments.index("--port") if "--port" in arguments else len(arguments)
                arguments[at : at + 2] = ["--port", "0"]
                self._serve(lambda: self._fastdef(["serve", *arguments]))
            case ["fastdef", *arguments]:
                self._fastdef(arguments)
            case _:
                raise AssertionError(f"who runs {words}?")

    def _fastdef(self, arguments):
        brief = " ".join(self._brief.get(" ".join(arguments[:count]), "") for count in (1, 2))
        self._monkeypatch.setattr(sys, "argv", ["fastdef", *arguments, *brief.split()])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        # Of an untrained network the adaptive evaluation's checks on itself may fail, and it says so.
        assert status == 0 or (status == 1 and arguments[0].startswith("evaluate")), (arguments, status)

    def _serve(self, run):
        before = len(self._servers)
        self._serving.append(threading.Thread(target=run, daemon=True))
        self._serving[-1].start()
        until = time.monotonic() + 120
        while not (len(self._servers) > before and self._servers[-1].started):
            assert self._serving[-1].is_alive(), "it ended before it served"
            assert time.monotonic() < until
            time.sleep(0.02)

    def _curl(self, arguments):
        port = self._servers[-1].servers[0].sockets[0].getsockname()[1]
        words = [word.replace("8000", str(port)) for word in arguments]
        ended = subprocess.run(["curl", *words], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert "class" in json.loads(ended.stdout), ended.stdout

    def _torchrun(self, arguments):
        brief = f"{BRIEF['train']} {BRIEF['train afa']}".split()
        command = [sys.executable, "-m", "torch.distributed.run", *arguments, *brief]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert ended.returncode == 0, ended.stderr[-2000:]
