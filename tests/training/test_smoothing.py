import contextlib
import json

import pytest
import torch

from fastdef import ActiveDefense
from fastdef.checkpoint import load
from fastdef.data import Batches, Dataset, RandomCropFlip
from fastdef.nn import build, parse_architecture
from fastdef.training import TrainConfig, train_smoothing
from fastdef.training.update_bn import update_bn

SMALL = {"epochs": 3, "batch_size": 16, "lr": 0.05}


def stripes(count=96, seed=0):
    """Horizontal against vertical stripes, in noise: learnt in a moment."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    wave = (torch.arange(12) % 4 < 2) * 200
    clean = torch.where(labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    noise = torch.randint(0, 55, (count, 12, 12), generator=generator)
    return Dataset((clean + noise).to(torch.uint8)[:, None], labels, ("rows", "columns"), "stripes", "fit", flip=True)


def train(folder, progress=lambda *_: None, *, resume=False, delta=0.02, count=96, defense=None, **config):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=2, in_channels=1))
    settings = TrainConfig(**{**SMALL, **config})
    data, held_out = stripes(count), stripes(40, seed=1)
    options = {"delta": delta, "resume": resume, "progress": progress, **(defense or {})}
    return train_smoothing(model, data, held_out, settings, folder, **options)


def weights(folder):
    return load(folder / "model.safetensors").model.state_dict()


def test_training_learns_and_lowers_the_feature_loss(tmp_path):
    figures = train(tmp_path / "smooth", count=640)
    standard = train(tmp_path / "standard", count=640, delta=0.0)

    assert figures["accuracy"] > 0.9
    assert figures["feature_loss"] < standard["feature_loss"]


def test_a_run_leaves_a_model_that_can_be_defended(tmp_path):
    train(tmp_path)

    checkpoint = load(tmp_path / "model.safetensors")
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False, max_steps=5)
    assert defense(stripes(4).floats(0, 4)).shape == (4, 2)
    assert checkpoint.classes == ("rows", "columns")
    assert checkpoint.training["config"]["hyper"]["epochs"] == 3
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"schedule": "step", "milestones": (1,)}])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, options):
    def interrupt(epoch, steps, figures):
        if epoch == 2:
            raise Interrupt

    whole = train(tmp_path / "whole", **options)
    with pytest.raises(Interrupt):
        train(tmp_path / "broken", interrupt, **options)
    resumed = train(tmp_path / "broken", resume=True, **options)

    assert resumed["train_loss"] == whole["train_loss"]
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "broken").items())


def test_the_average_is_what_is_saved_and_does_not_change_training(tmp_path):
    plain = train(tmp_path / "plain")
    averaged = train(tmp_path / "averaged", ema=0.5)

    assert averaged["train_loss"] == plain["train_loss"]
    assert not torch.equal(weights(tmp_path / "plain")["conv1.weight"], weights(tmp_path / "averaged")["conv1.weight"])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_saved_running_statistics_are_those_of_the_saved_weights(tmp_path, ema):
    train(tmp_path, ema=ema)

    model = load(tmp_path / "model.safetensors").model
    saved = model.bn1.running_mean.clone()
    last = Batches(stripes(), 16, augment=RandomCropFlip(), drop_last=True).epoch(2)
    update_bn(model, (images for images, _ in last))
    torch.testing.assert_close(saved, model.bn1.running_mean, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_what_a_step_changes(tmp_path):
    still = train(tmp_path / "still", epochs=1, clip=1e-6, lr=1e-3)
    moved = train(tmp_path / "moved", epochs=1, lr=1e-3)

    assert still["train_loss"] > moved["train_loss"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_epoch(tmp_path):
    train(tmp_path, epochs=1)
    before = weights(tmp_path)
    state = tmp_path / "state.safetensors"
    kept = state.read_bytes()

    with pytest.raises(ValueError, match="stopped: loss of epoch 1 is not finite"):
        train(tmp_path / "other", lr=1e30)

    assert state.read_bytes() == kept
    assert not (tmp_path / "other" / "state.safetensors").exists()
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())


@pytest.mark.slow  # half a minute of C++ compiler
def test_a_compiled_step_trains_the_same(tmp_path):
    plain = train(tmp_path / "plain", epochs=1)

    compiled = train(tmp_path / "compiled", epochs=1, compile=True)

    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-2)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    train(tmp_path, epochs=1)

    with pytest.raises(ValueError, match="holds a run already"):
        train(tmp_path, epochs=1)


def test_resuming_needs_a_run_and_the_same_settings(tmp_path):
    with pytest.raises(ValueError, match="there is no"):
        train(tmp_path, resume=True)
    train(tmp_path, epochs=1)

    with pytest.raises(ValueError, match=r"hyper\.lr was 0\.05, got 0\.1"):
        train(tmp_path, epochs=1, lr=0.1, resume=True)


@pytest.mark.parametrize("epochs", [1, 2], ids=["finished", "unfinished"])
@pytest.mark.parametrize(("name", "was", "got"), [("sigma", 0.075, 0.2), ("beta", 80.0, 5.0), ("ratio", 0.92, 0.5)])
def test_resuming_needs_the_same_defense(tmp_path, epochs, name, was, got):
    def interrupt(epoch, steps, figures):
        if epoch == 1:
            raise Interrupt

    with contextlib.suppress(Interrupt):
        train(tmp_path, interrupt, epochs=epochs)
    before = (tmp_path / "model.safetensors").read_bytes()

    with pytest.raises(ValueError, match=rf"defense\.{name} was {was}, got {got}"):
        train(tmp_path, epochs=epochs, resume=True, defense={name: got})
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_resuming_a_finished_run_gives_its_figures_and_trains_nothing(tmp_path):
    figures = train(tmp_path, epochs=1)
    before = (tmp_path / "model.safetensors").read_bytes()

    assert train(tmp_path, epochs=1, resume=True) == figures
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_finished_run_without_its_model_file_writes_the_same_again(tmp_path, ema):
    figures = train(tmp_path, ema=ema)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "model.safetensors").unlink()

    again = train(tmp_path, lambda *_: pytest.fail("it was trained"), resume=True, ema=ema)

    assert again == figures
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_an_epoch_that_was_cut_short_while_saving_is_done_again(tmp_path):
    train(tmp_path / "whole")

    def cut(epoch, steps, figures):
        if epoch == 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        train(tmp_path / "cut", cut)
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"epoch": 3}\n')
    train(tmp_path / "cut", resume=True)

    epochs = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert "accuracy" in epochs[2]


def test_what_the_defense_refuses_is_refused_before_anything_is_written(tmp_path):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=2, in_channels=1))

    for wrong in ({"layer": "block9"}, {"sigma": -1.0}, {"beta": 0.0}, {"ratio": float("nan")}, {"delta": -0.1}):
        with pytest.raises(ValueError, match="needs"):
            train_smoothing(model, stripes(), stripes(40), TrainConfig(epochs=1), tmp_path / "run", **wrong)

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spoil", [lambda data: data[:-10], lambda data: b"", lambda data: b"PK" + data])
def test_a_damaged_state_is_refused(tmp_path, spoil):
    train(tmp_path, epochs=1)
    state = tmp_path / "state.safetensors"
    state.write_bytes(spoil(state.read_bytes()))

    with pytest.raises(ValueError, match="not a whole training state"):
        train(tmp_path, epochs=1, resume=True)
