"""The coverage-guided fuzzer reaches the code that it follows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_target_runs_and_sees_the_code(tmp_path):
    pytest.importorskip("atheris", reason="the fuzz extra is not installed")
    command = [sys.executable, "-m", "tests.fuzz.targets", "images", "-runs=200"]

    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )

    assert ended.returncode == 0, ended.stderr
    assert "Done 200 runs" in ended.stderr
    assert max(int(seen) for seen in re.findall(r"cov: (\d+)", ended.stderr)) > 20
