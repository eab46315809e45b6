"""Both stages as a user runs them: files, resuming, the plain methods, and both defenses together."""

import copy

import pytest
import torch

from fastdef.checkpoint import load
from fastdef.data import Dataset
from fastdef.defense import ActiveDefense
from fastdef.losses import PGDAT, TRADES
from fastdef.nn import AFA2d, MultiBatchNorm2d, build, parse_architecture
from fastdef.training import TrainConfig, calibrate, train_branches, train_fusing

XI = [0.0, 4 / 255, 8 / 255]


def data(count=32):
    pixels = torch.randint(0, 256, (count, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    return Dataset(pixels.to(torch.uint8), torch.arange(count) % 10, tuple("abcdefghij"), "noise", "fit")


def network():
    torch.manual_seed(0)
    return build(parse_architecture("wrn-10-1", in_channels=1))


def stages(folder, *, epochs=1, resume=False, seed=0, **options):
    config = TrainConfig(epochs=epochs, batch_size=16, lr=0.05, nesterov=False, schedule="step", seed=seed)
    model = network()
    train_branches(model, data(), data(), config, folder / "1", recipe=PGDAT(), strengths=XI, resume=resume, **options)
    train_fusing(model, data(), data(), config, folder / "2", strengths=XI, resume=resume)
    return model


def test_both_stages_leave_model_files_that_load(tmp_path):
    model = stages(tmp_path)

    first, second = load(tmp_path / "1" / "model.safetensors"), load(tmp_path / "2" / "model.safetensors")
    images = data().floats(0, 4)
    assert sum(isinstance(module, MultiBatchNorm2d) for module in first.model.modules()) > 0
    assert sum(isinstance(module, AFA2d) for module in second.model.modules()) > 0
    assert first.model(images).shape == (4, 10)  # a whole batch through branch 0, until another is chosen
    assert first.training["config"]["method"]["strengths"] == [0, 4, 8]
    torch.testing.assert_close(second.model(images), model.eval()(images))


def test_a_run_of_both_stages_goes_on_bit_for_bit(tmp_path):
    whole = stages(tmp_path / "whole", epochs=2)
    cut = TrainConfig(epochs=2, batch_size=16, lr=0.05, nesterov=False, schedule="step")
    folder, model = tmp_path / "cut", network()

    class Cut(Exception):
        pass

    def stop(epoch, steps, figures):
        if epoch == 1:
            raise Cut

    options = {"recipe": PGDAT(), "strengths": XI}
    with pytest.raises(Cut):
        train_branches(model, data(), data(), cut, folder / "1", progress=stop, **options)
    model = network()
    train_branches(model, data(), data(), cut, folder / "1", resume=True, **options)
    with pytest.raises(Cut):
        train_fusing(copy.deepcopy(model), data(), data(), cut, folder / "2", strengths=XI, progress=stop)
    train_fusing(model, data(), data(), cut, folder / "2", strengths=XI, resume=True)

    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("recipe", "strengths"), [(TRADES(), [8 / 255]), (PGDAT(), [0.0])])
def test_one_branch_leaves_a_plain_model(tmp_path, recipe, strengths):
    config = TrainConfig(epochs=1, batch_size=16, lr=0.05)

    train_branches(network(), data(), data(), config, tmp_path, recipe=recipe, strengths=strengths)

    checkpoint = load(tmp_path / "model.safetensors")
    assert checkpoint.architecture["conversions"] == []
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in checkpoint.model.modules())


def test_an_afa_model_trained_smooth_runs_under_active_defense(tmp_path):
    model = stages(tmp_path, smoothed={"layer": "block1", "delta": 0.02})
    path = tmp_path / "2" / "model.safetensors"

    calibrate(path, data(), beta=1.0, max_steps=20)

    defense = ActiveDefense.from_checkpoint(load(path), compile=False)
    images = data().floats(0, 6)
    answers = defense.defend(images)
    assert answers.logits.shape == (6, 10)
    assert (answers.steps > 0).any()
    smoothed = defense.defend(images).images
    with torch.no_grad():
        expected = model.eval()(smoothed).log_softmax(1)
    torch.testing.assert_close(answers.logits, expected)


def test_stage_one_goes_on_only_in_the_way_it_began(tmp_path):
    stages(tmp_path)

    with pytest.raises(ValueError, match=r"method\.name was afa stage I, got afa stage I, branch by branch"):
        stages(tmp_path, resume=True, sequential=True)


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path):
    options = {"recipe": PGDAT(), "strengths": XI}
    refused = [
        (TrainConfig(ema=0.9), {}, "ema 0"),
        (TrainConfig(compile=True), {"sequential": True}, "neither compiled nor smoothed"),
        (TrainConfig(), {"sequential": True, "smoothed": {"delta": 0.1}}, "neither compiled nor smoothed"),
        (TrainConfig(), {"smoothed": {"delta": -1.0}}, "delta > 0"),
    ]
    for config, wrong, told in refused:
        with pytest.raises(ValueError, match=told):
            train_branches(network(), data(), data(), config, tmp_path / "run", **options, **wrong)
    with pytest.raises(ValueError, match="ema 0"):
        train_fusing(network(), data(), data(), TrainConfig(ema=0.9), tmp_path / "run", strengths=XI)
    assert not (tmp_path / "run").exists()
