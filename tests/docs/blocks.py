"""The code blocks of a page, and what a reader would have at hand who runs them."""

import re
from dataclasses import dataclass

import torch
from PIL import Image

from fastdef.checkpoint import save
from fastdef.data import load_dataset, write_idx
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page on which it begins."""

    language: str
    text: str
    line: int


def blocks_of(page):
    """Every block of a page of Markdown."""
    return [Block(m[1], m[2], page.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(page)]


def furnish(folder, page, create_model):
    """Photos by class, small data sets, a network of timm, a trained run, a foreign checkpoint: as pages name them."""
    generator = torch.Generator().manual_seed(0)
    _data_sets(folder / "data", generator)
    _picture(folder / "photo.png", 32, generator)
    if "save_file(" not in page:  # or the page makes them
        from safetensors.torch import save_file

        _photos(folder / "photos", generator)
        torch.manual_seed(0)
        save_file(create_model("resnet18", num_classes=3).state_dict(), folder / "mine.safetensors")
    torch.manual_seed(0)
    torch.save({"state_dict": _small().state_dict()}, folder / "trades.pt")
    if "--out run\n" not in page and "run/model.safetensors" in page:
        _run(folder / "run", folder / "data" / "cifar10")


def _small():
    return build(parse_architecture("wrn-10-1", num_classes=10, in_channels=3)).eval()


def _run(folder, data):
    """What ``fastdef train smoothing --out run`` leaves, with a defense of few steps."""
    folder.mkdir()
    torch.manual_seed(0)
    model = _small()
    defense = ActiveDefense(model, beta=3.0, max_steps=4, compile=False)
    defense.calibrate(load_dataset("cifar10", "test", root=data).floats(0, 8))
    described = {"architecture": architecture_of(model), "training": {"shape": [3, 32, 32]}}
    save(folder / "model.safetensors", model, classes=CIFAR, defense=defense.config(), **described)


def _data_sets(folder, generator):
    for split, count in (("train", 4), ("test", 2)):
        for name in CIFAR:
            for number in range(count):
                _picture(folder / "cifar10" / split / name / f"{number}.png", 32, generator)
        images = torch.randint(0, 256, (10 * count, 1, 28, 28), generator=generator).to(torch.uint8)
        write_idx(folder / "fashion-mnist", split, images, torch.arange(10 * count) % 10)


def _photos(folder, generator):
    for name in ("cat", "dog", "fox"):
        for number in range(8):
            _picture(folder / name / f"{number}.jpg", 40 + number, generator)


def _picture(file, size, generator):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(0, 256, (size, size, 3), generator=generator).to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(file)
