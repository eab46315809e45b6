import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
# A process takes file after file, so the longest begin first; in order of their seconds.
LONGEST = (
    "test_entrances",
    "test_same_answer",
    "test_files",
    "test_whole_way",
    "test_code_blocks",
    "test_doors",
    "test_checked",
)


def pytest_collection_modifyitems(items):
    """Long files first, the others as they come."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """A test and its fixtures draw the same numbers whatever ran before them in the process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def on_ranks():
    """Runs a script on some processes that torch.distributed can join; all end well, and what the first printed."""

    def run(count, script, *arguments):
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
        common["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # ours, of which no process is the first
        common |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
        started = [subprocess.Popen(command, env={**common, "RANK": str(rank)}, **pipes) for rank in range(count)]
        told = [process.communicate(timeout=300) for process in started]
        assert [process.returncode for process in started] == [0] * count, "".join(error for _, error in told)[-4000:]
        return told[0][0]

    return run
