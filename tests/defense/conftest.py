import pytest
import torch

from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return WideResNet(10, 1, in_channels=1).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(24, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def defense_for():
    """Makes a small, calibrated defense of a model, of eight slots."""

    def make(model, images, **options):
        options = {"beta": 3.0, "compile": False, "slots": 8, "seed": 3, **options}
        defense = ActiveDefense(model, **options)
        defense.calibrate(images)
        return defense

    return make
