"""Which test runs which line? A pytest plugin, around each test, and what it found."""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import coverage
import pytest

MOST = 10.0  # seconds of tests that a mutant meets
BETWEEN = ""  # the name of what no test runs: imports, and fixtures that outlive one


class Cover:
    """Lines of ``fastdef`` by test, and each test's seconds.

    Args:
        tree: the copy whose tests run.
        path: of the file to write at the end.
    """

    def __init__(self, tree: Path, path: Path) -> None:
        self._tree = tree
        self._path = path
        self._seconds: dict[str, float] = {}
        self._uses: dict[str, list[str]] = {}
        self._shared: dict[str, float] = {}  # seconds of a fixture that several tests share
        self._sharing = 0.0  # of them, in this test
        self._coverage = coverage.Coverage(data_file=None, config_file=False, include=[f"{tree}/fastdef/*"])
        self._coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Setup, call and teardown count as the test's, but for what others share."""
        self._coverage.switch_context(item.nodeid)
        begin, self._sharing = time.perf_counter(), 0.0
        yield
        assert sys.gettrace() is not None, f"{item.nodeid} ended all tracing: the lines of what follows are not known"
        self._seconds[item.nodeid] = time.perf_counter() - begin - self._sharing
        self._uses[item.nodeid] = list(getattr(item, "fixturenames", ()))
        self._coverage.switch_context(BETWEEN)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        """A fixture that outlives one test counts for each that uses it: alone, it would have to make it."""
        begin = time.perf_counter()
        yield
        if fixturedef.scope != "function":
            seconds = time.perf_counter() - begin
            self._sharing += seconds
            self._shared[fixturedef.argname] = max(seconds, self._shared.get(fixturedef.argname, 0.0))

    def pytest_sessionfinish(self) -> None:
        """``{"seconds": {test: s}, "lines": {module: {line: [test, ...]}}}``, as JSON."""
        self._coverage.stop()
        data = self._coverage.get_data()
        lines: dict[str, dict[int, list[str]]] = defaultdict(dict)
        for file in data.measured_files():
            module = str(Path(file).relative_to(self._tree))
            lines[module] = {line: sorted(tests) for line, tests in data.contexts_by_lineno(file).items()}
        shared = {test: sum(self._shared.get(name, 0.0) for name in names) for test, names in self._uses.items()}
        seconds = {test: own + shared[test] for test, own in self._seconds.items()}
        self._path.write_text(json.dumps({"seconds": seconds, "lines": lines}))


class Covered:
    """What a :class:`Cover` wrote."""

    def __init__(self, path: Path) -> None:
        found = json.loads(path.read_text())
        self._seconds: dict[str, float] = found["seconds"]
        self._lines: dict[str, dict[str, list[str]]] = found["lines"]

    def tests(self, module: str, lines: range) -> dict[str, float]:
        """Tests that run any of the lines and their seconds, as many as ``MOST`` seconds hold.

        The first are those of the file that mirrors the module, and of both kinds the fastest.

        What runs at the module's import, such as a constant, may show in a test that runs none of its lines: then it is
        all tests of the files that have to do with the module.
        """
        own = self._lines.get(module, {})
        found = {test for line in lines for test in own.get(str(line), ())}
        if BETWEEN in found or not found:
            files = {_file(test) for tests in own.values() for test in tests}
            found = {test for test in self._seconds if _file(test) in files}
        own_file = f"test_{Path(module).stem}"
        several = sorted(found, key=lambda test: (own_file not in _file(test), self._seconds[test]))
        ends = accumulate(self._seconds[test] for test in several)
        held = sum(end <= MOST for end in ends)
        return {test: self._seconds[test] for test in several[: max(held, 1)]}


def _file(test: str) -> str:
    return test.split("::")[0]
