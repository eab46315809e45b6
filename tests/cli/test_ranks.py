"""What can be told of GPUs where there are none; the command itself on several processes is in test_torchrun.py."""

import pytest
import torch

from fastdef import distributed
from fastdef.cli._ranks import check_own_device


@pytest.mark.parametrize(("device", "there"), [("cuda:1", 8), ("cuda", 2)])
def test_each_process_needs_a_gpu_of_its_own(monkeypatch, device, there):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setenv("LOCAL_RANK", "3")

    with pytest.raises(ValueError, match=f"a GPU for each process, got {device} and {there} of them"):
        check_own_device(torch.device(device))


def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")

    assert check_own_device(torch.device("cuda")) == torch.device("cuda:3")
    assert check_own_device(torch.device("cpu")) == torch.device("cpu")
