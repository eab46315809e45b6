from dataclasses import replace

import pytest
import torch

import fastdef
from fastdef.assets import ASSETS
from fastdef.data import Dataset, load_dataset
from fastdef.evaluation.adaptive import BUDGETS
from fastdef.evaluation.adaptive.attack_case import Batch
from fastdef.nn import build, parse_architecture
from tests.evaluation.adaptive import linear

CLASSES = tuple("abcdefghij")


@pytest.fixture(scope="session")
def tiny():
    """A budget of seconds."""
    smoke = BUDGETS["smoke"]
    effort = replace(smoke.autoattack, iterations=2, targets=1, queries=4, eot=2)
    return replace(
        smoke,
        images=6,
        noise_samples=3,
        reevaluations=4,
        eot=2,
        iterations=2,
        depths=(2,),
        averaged_steps=2,
        unrolled=(2,),
        unrolled_iterations=1,
        queries=4,
        autoattack=effort,
        curve_eps=(4,),
        curve_iterations=(1, 2),
        batch=4,
    )


@pytest.fixture(scope="session")
def dataset():
    pixels = torch.randint(0, 256, (8, 1, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset(pixels, torch.arange(8) % 10, CLASSES, "made", "test")


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1))
    model(torch.rand(16, 1, 12, 12))
    return model.eval()


@pytest.fixture(scope="session")
def defense(model):
    defense = fastdef.ActiveDefense(model, beta=3.0, max_steps=6, compile=False)
    defense.calibrate(torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0)), ratio=1.0)
    return defense


@pytest.fixture(scope="session")
def restless():
    """A defense of one convolution, for images of 4 x 4, that is never content and takes all its steps."""
    torch.manual_seed(0)
    size = 4 * linear.SIDE**2
    parts = [torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(size, 4)]
    model = torch.nn.Sequential(*parts).eval()
    return fastdef.ActiveDefense(model, layer="0", beta=3.0, max_steps=3, delta=1e-6, compile=False)


@pytest.fixture(scope="session")
def shipped():
    """The shipped classifier without its defense, which falls to any attack."""
    return fastdef.load(ASSETS / "smoothing.safetensors").model.eval()


@pytest.fixture(scope="session")
def fashion():
    return load_dataset("fashion-mnist", "test", root=ASSETS)


@pytest.fixture
def batch():
    images = torch.full((linear.IMAGES, 1, linear.SIDE, linear.SIDE), 0.5)
    return Batch(
        images, torch.zeros(linear.IMAGES, dtype=torch.int64), torch.arange(linear.IMAGES), 7, lambda key: images
    )


@pytest.fixture(scope="session")
def six():
    """Six images for the linear model, whose labels are 0 and 1."""
    pixels = torch.randint(0, 256, (6, 1, linear.SIDE, linear.SIDE), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    return Dataset(pixels, torch.arange(6) % 2, tuple("abcd"), "made", "test")


@pytest.fixture(scope="session")
def least(tiny):
    """The tiny budget without curves."""
    return replace(tiny, curve_eps=(), curve_iterations=())
