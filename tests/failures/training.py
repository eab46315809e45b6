"""Commands that train, and when two runs are the same."""

import json

import torch

from fastdef.training.state import FILE, State

COMMANDS = {
    "smoothing": ["train", "smoothing", "--epochs", 3, "--beta", 3, "--ema", 0.9],
    "afa": ["train", "afa", "--epochs", 2, "--fusing-epochs", 2, "--branches", 2],
}
SMALL = ["--architecture", "wrn-10-1", "--batch-size", 8, "--device", "cpu"]


def states(folder):
    """The state of each stage that has one, by its place in the folder."""
    return {str(path.relative_to(folder)): State.read(path.parent) for path in sorted(folder.rglob(FILE))}


def epochs(folder):
    return sum(state.epochs for state in states(folder).values())


def assert_same(folder, whole):
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    for name in (name for name in files if name.name == "model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for (name, state), expected in zip(states(folder).items(), states(whole).values(), strict=True):
        assert (state.epochs, state.figures) == (expected.epochs, expected.figures), name
        assert state.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(value, expected.tensors[key]) for key, value in state.tensors.items())
    for name in (name for name in files if name.name == "log.jsonl"):
        lines = [[json.loads(line) for line in (place / name).read_text().splitlines()] for place in (folder, whole)]
        assert [{**line, "seconds": 0} for line in lines[0]] == [{**line, "seconds": 0} for line in lines[1]]
