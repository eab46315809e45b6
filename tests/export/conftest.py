import pytest
import torch

from fastdef.checkpoint import load, save
from fastdef.defense import ActiveDefense
from fastdef.export.files import export_onnx
from fastdef.nn import architecture_of, build, parse_architecture

SHAPE = (1, 12, 12)


@pytest.fixture(scope="session")
def images():
    return torch.rand(9, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, images):
    """A small classifier with an Active Defense of two outer loops."""
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=3, in_channels=1)).eval()
    defense = ActiveDefense(model, beta=3.0, max_steps=40, outer_loops=2, compile=False)
    defense.calibrate(images)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save(path, model, architecture=architecture_of(model), classes=("a", "b", "c"), defense=defense.config())
    return load(path)


@pytest.fixture(scope="session")
def folder(checkpoint, tmp_path_factory):
    """Its export, masked forms and all; not to be written to."""
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(checkpoint, folder, shape=SHAPE, masked=True)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    """Its export, to be spoilt."""
    place = tmp_path / "copied"
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place
