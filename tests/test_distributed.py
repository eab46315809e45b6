"""The group of a process beside what torch keeps of it."""

import subprocess
import sys

import pytest

LATE = """
import os
import torch.distributed as dist
import fastdef.distributed

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import torch._dynamo  # as whoever compiles, or makes an optimizer

dist.barrier()
dist.destroy_process_group()
for thread in os.listdir("/proc/self/task"):
    print(open(f"/proc/self/task/{thread}/comm").read().strip())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the names of threads")
def test_a_group_that_is_destroyed_leaves_no_thread_to_abort_the_interpreter_at_its_end():
    ended = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)

    assert "python" in ended.stdout
    assert "gloo" not in ended.stdout
