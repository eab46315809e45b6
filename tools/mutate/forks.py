"""Runs the tests of one mutant after another in forks of a process that has torch imported already.

    python -m tools.mutate.forks TREE COVERED MODULE ORIGINAL SOCKET

Each connection asks for the tests of what MODULE is in TREE now: those that run a line in which it differs from
ORIGINAL. The answer is one byte, 1 where they passed. Importing torch takes longer than most tests do.
"""

import difflib
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from tools.mutate.cover import Cover, Covered

# What takes long to import, and nothing of the tree. A plugin of pytest among it comes too early for its asserts.
HEAVY = ("torch._dynamo", "torch._inductor.compile_fx", "foolbox", "pyautoattack", "matplotlib.figure", "fastapi")
OPTIONS = (
    "-q",
    "-x",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-m",
    "not slow and not gpu",
)
SLACK = 20.0  # seconds beyond ten times what the tests took unbroken


def main() -> None:
    """Serve until killed."""
    tree, covered, module, original, address = sys.argv[1:]
    preload()
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    known = Covered(Path(covered))
    while True:
        connection, _ = server.accept()
        lines = changed(Path(original), Path(tree) / module)
        tests = known.tests(module, lines) if lines else known.tests(module, range(1, 1_000_000))
        passed = run(Path(tree), tests, seconds=10 * known.seconds(tests) + SLACK)
        connection.sendall(bytes([passed]))
        connection.close()


def preload() -> None:
    """Import what every fork would import anew; what is not installed is left out."""
    for name in HEAVY:
        with suppress(ImportError):
            __import__(name)


def changed(original: Path, mutant: Path) -> range:
    """The lines of the original from the first to the last that a mutant has otherwise; empty where it has none."""
    texts = (path.read_text().splitlines() for path in (original, mutant))
    codes = [code for code in difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes() if code[0] != "equal"]
    return range(codes[0][1] + 1, max(codes[-1][2], codes[0][1] + 1) + 1) if codes else range(0)


def run(tree: Path, tests: list[str], *, seconds: float) -> bool:
    """Whether tests pass, in a fork, in time; tests that nothing runs cannot notice anything, and pass."""
    if not tests:
        return True
    child = os.fork()
    if child == 0:
        in_fork(tree, [*OPTIONS, *tests])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def in_fork(tree: Path, arguments: list[str], *, cover: Path | None = None) -> None:
    """Run pytest, and never come back."""
    import pytest

    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    quiet = os.open(tree.parent / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    status: int = 70
    try:
        plugin = None if cover is None else Cover(tree)
        status = int(pytest.main(arguments, plugins=[] if plugin is None else [plugin]))
        if plugin is not None and cover is not None:
            plugin.write(cover)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
