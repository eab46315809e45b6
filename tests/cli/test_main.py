"""How the command ends when something is wrong that is not the user's input."""

import sys

import pytest
import torch

from fastdef.cli import main


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_is_one_line(monkeypatch, run, model_file, error):
    monkeypatch.setattr(sys.modules["fastdef.cli.defend"], "load", raising(error))

    status, _, told = run("defend", model_file, "image.png")

    assert status == 1
    assert told == "fastdef: out of memory: smaller batches, images or models, or fewer images, may fit\n"


def test_another_error_keeps_its_traceback(monkeypatch, model_file):
    monkeypatch.setattr(sys.modules["fastdef.cli.defend"], "load", raising(RuntimeError("a bug")))
    monkeypatch.setattr(sys, "argv", ["fastdef", "defend", str(model_file), "image.png"])

    with pytest.raises(RuntimeError, match="a bug"):
        main()


def raising(error):
    def load(*arguments, **options):
        raise error

    return load
