"""Runs the tests of one mutant after another in forks of a process that has torch imported already.

    python -m tools.mutate.forks TREE COVERED MODULE ORIGINAL SOCKET

Each connection asks for the tests of what MODULE is in TREE now: those that run a line in which it differs from
ORIGINAL. The answer is one byte, 1 where they passed. Importing torch takes longer than most tests do, and importing
fastdef as long as many: of a mutant that differs inside functions alone, those get their new code after the import.
"""

import difflib
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import pytest

from tools.mutate.cover import Cover, Covered
from tools.mutate.patch import patched

# What takes long to import, and nothing of the tree.
HEAVY = (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "foolbox",
    "pyautoattack",
    "matplotlib.figure",
    "fastapi",
    "hypothesis",
)
OPTIONS = (
    *("-q", "-x", "-m", "not slow and not gpu", "--assert=plain"),  # nobody reads how a mutant failed
    *("-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:threadexception"),
)
SLACK = 10.0  # seconds of a test beyond ten times what it took unbroken
UNPATCHED = 71  # the status of a fork in which a mutant could not take the unbroken code's place


def main() -> None:
    """Serve until killed."""
    tree, covered, module, original, address = (Path(argument) for argument in sys.argv[1:])
    mutant, known = tree / module, Covered(covered)
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    warm = Warm(tree, module)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(address))
    server.listen()
    while True:
        connection, _ = server.accept()
        tests = known.tests(str(module), changed(original, mutant) or range(1, 1_000_000))
        passed = warm.run(original, mutant, tests)
        if passed is None:
            passed = run(tree, tests)
        connection.sendall(bytes([bool(passed)]))
        connection.close()


class Warm:
    """A fork that has the unbroken module imported.

    Args:
        tree: the copy.
        module: the path of the module in it.
    """

    def __init__(self, tree: Path, module: Path) -> None:
        self._ours, theirs = Pipe()
        if os.fork() == 0:
            enter(tree)
            with suppress(ImportError):  # it needs what is not installed here: tests bring a stand-in, and import it
                importlib.import_module(".".join(module.with_suffix("").parts))
            gc.freeze()
            self._ours.close()
            with suppress(EOFError):  # until the other end is gone
                while True:
                    original, mutant, tests = theirs.recv()
                    theirs.send(run(tree, tests, before=partial(patched, original, mutant, mutant)))
            os._exit(0)

    def run(self, original: Path, mutant: Path, tests: dict[str, float]) -> bool | None:
        """Whether tests pass; None where the mutant differs in what runs at import."""
        self._ours.send((original, mutant, tests))
        answer: bool | None = self._ours.recv()
        return answer


def changed(original: Path, mutant: Path) -> range:
    """The lines of the original from the first to the last that a mutant has otherwise; empty where it has none."""
    texts = (path.read_text().splitlines() for path in (original, mutant))
    codes = [code for code in difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes() if code[0] != "equal"]
    return range(codes[0][1] + 1, max(codes[-1][2], codes[0][1] + 1) + 1) if codes else range(0)


def run(tree: Path, tests: dict[str, float], *, before: Callable[[], bool] = lambda: True) -> bool | None:
    """Whether tests pass, in a fork, each in time; None where ``before``, called there, says that it cannot be done.

    Tests that nothing runs cannot notice anything, and pass.
    """
    if not tests:
        return True
    child = os.fork()
    if child == 0:
        if not before():
            os._exit(UNPATCHED)
        in_fork(tree, [*OPTIONS, *tests], Limit(tests))
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it began
    code = os.waitstatus_to_exitcode(status)
    return None if code == UNPATCHED else code == 0


class Limit:
    """Ends the process at a test that takes far longer than it did unbroken: a mutant may never come to an end.

    Args:
        seconds: that each took.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """The alarm is not caught."""
        signal.setitimer(signal.ITIMER_REAL, 10 * self._seconds[item.nodeid] + SLACK)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)


def enter(tree: Path) -> None:
    """Be in the tree, import from it, and write what is said beside it."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    quiet = os.open(tree.parent / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def in_fork(tree: Path, arguments: list[str], plugin: Cover | Limit) -> None:
    """Run pytest in a session of its own, and never come back."""
    status = 70
    try:
        os.setsid()
        enter(tree)
        status = int(pytest.main(arguments, plugins=[plugin]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
