import sys

import pytest
import torch
from PIL import Image

from fastdef.checkpoint import save
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture
from tests.failures.processes import run
from tests.failures.training import COMMANDS, SMALL

SHAPE = (1, 12, 12)
collect_ignore_glob = [] if sys.platform == "linux" else ["*"]  # clocks of other processes, capabilities, mounts


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Options that name 40 images to train on and 12 to test on, of two classes."""
    root, generator = tmp_path_factory.mktemp("data"), torch.Generator().manual_seed(0)
    for split, count in (("train", 20), ("test", 6)):
        for name in "ab":
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, SHAPE[1:], generator=generator).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return ["--data", "noise", "--root", root]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Model files by whether they are ``plain`` or ``defended``."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    model = build(parse_architecture("wrn-10-1", num_classes=2, in_channels=1)).eval()
    defense = ActiveDefense(model, beta=3.0, max_steps=6, compile=False)
    defense.calibrate(torch.rand(8, *SHAPE))
    paths = {}
    for name, config in (("plain", None), ("defended", defense.config())):
        paths[name] = folder / f"{name}.safetensors"
        described = {"architecture": architecture_of(model), "classes": ("a", "b"), "training": {"shape": list(SHAPE)}}
        save(paths[name], model, defense=config, **described)
    return paths


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """By method: the command without its folder, that of a run which nobody killed, and how it ended."""
    base = tmp_path_factory.mktemp("whole")

    def train(method):
        command = [*COMMANDS[method], *data, *SMALL, "--out"]
        ended = run([*command, base / method], base / method)
        assert ended.status == 0, ended.told
        return command, base / method, ended

    return {method: train(method) for method in COMMANDS}
