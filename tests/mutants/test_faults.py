"""Each fault of the list is made in a copy of the tree, and the tests that are named with it must fail."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.faults import FAULTS

ROOT = Path(__file__).parents[2]
PARTS = ("fastdef", "kernels", "export", "tests", "benchmarks", "pyproject.toml")
PASSED, FAILED = 0, 1  # of pytest; 2 and more are tests that could not be run
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    copy = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / part, copy / part, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / part, copy / part)
    return copy


def status(tree, tests):
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        [*command, "-m", "not slow and not gpu", *shlex.split(tests)],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("tests", sorted({fault.tests for fault in FAULTS}))
def test_without_a_fault_the_tests_pass(tree, tests):
    code, output = status(tree, tests)

    assert code == PASSED, output


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_found(tree, fault):
    file = tree / fault.file
    whole = file.read_text()
    assert whole.count(fault.before) == 1

    file.write_text(whole.replace(fault.before, fault.after))
    try:
        code, output = status(tree, fault.tests)
    finally:
        file.write_text(whole)

    assert code == FAILED, output
