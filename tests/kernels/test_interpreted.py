"""Kernels against the reference, on the CPU, by Triton's interpreter.

The interpreter is chosen when triton is imported, and does not live with torch.compile in one process. So each file of
``interpreted/`` runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed here")
HERE = Path(__file__).parent
CHECKS = sorted(path.stem for path in (HERE / "interpreted").glob("*.py"))


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_match_the_reference_in_the_interpreter(name):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        HERE / "interpreted" / f"{name}.py",
    ]

    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=HERE.parent.parent
    )

    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
