import pytest
import torch

from fastdef.checkpoint import load, save
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense, Polyak
from fastdef.nn import build, parse_architecture, prefix
from fastdef.ops import smoothing_loss
from fastdef.training import calibrate

ARCHITECTURE = parse_architecture("wrn-10-1", num_classes=2, in_channels=1)


def images(count=20, channels=1):
    pixels = torch.randint(0, 256, (count, channels, 12, 12), generator=torch.Generator().manual_seed(0))
    return Dataset(pixels.to(torch.uint8), torch.zeros(count, dtype=torch.int64), ("a", "b"), "noise", "validation")


def write(path, defense):
    save(path, build(ARCHITECTURE), architecture=ARCHITECTURE, classes=["a", "b"], defense=defense, training={"a": 1})
    return path


def test_a_model_file_gets_a_defense_with_its_threshold_from_the_images(tmp_path):
    path = write(tmp_path / "m.safetensors", None)

    defense = calibrate(path, images(), layer="block2", sigma=0.05, ratio=0.5)

    checkpoint = load(path)
    with torch.no_grad():
        losses = smoothing_loss(prefix(checkpoint.model, "block2")(images().floats(0, 20)))
    assert checkpoint.defense == defense
    assert checkpoint.training == {"a": 1}
    assert (defense["layer"], defense["sigma"], defense["beta"]) == ("block2", 0.05, 80.0)
    assert defense["delta"] == pytest.approx(0.5 * float(losses.mean()), rel=1e-4)


def test_what_is_not_given_stays(tmp_path):
    path = write(tmp_path / "m.safetensors", None)
    calibrate(path, images(), beta=40.0, max_steps=7)

    defense = calibrate(path, images(), sigma=0.01)

    assert (defense["beta"], defense["max_steps"], defense["sigma"]) == (40.0, 7, 0.01)


def test_the_solver_is_in_the_file_and_the_papers_comes_back(tmp_path):
    path = write(tmp_path / "m.safetensors", None)
    calibrate(path, images(), beta=40.0)

    assert calibrate(path, images(), solver="polyak")["solver"]["name"] == "polyak"
    assert ActiveDefense.from_checkpoint(load(path)).solver == Polyak()
    assert calibrate(path, images(), sigma=0.01)["solver"]["name"] == "polyak"
    with pytest.raises(ValueError, match=r"solver gradient beside a beta, and the file's Polyak\(.*\) takes no beta"):
        calibrate(path, images(), beta=30.0)
    with pytest.raises(ValueError, match="polyak takes none"):
        calibrate(path, images(), solver="polyak", beta=30.0)

    gradient = calibrate(path, images(), solver="gradient")
    assert (gradient["beta"], "solver" in gradient) == (40.0, False)


@pytest.mark.parametrize("wrong", [{"solver": "newton"}, {"beta": -1.0}, {"layer": "block7"}, {"ratio": 0.0}])
def test_a_refusal_leaves_the_file_as_it_was(tmp_path, wrong):
    path = write(tmp_path / "m.safetensors", None)
    before = path.read_bytes()

    with pytest.raises(ValueError, match="needs"):
        calibrate(path, images(), **wrong)
    with pytest.raises(ValueError, match="needs images of 1 channels, got 3"):
        calibrate(path, images(channels=3))

    assert path.read_bytes() == before
