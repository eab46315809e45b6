"""The loop under a method that crafts its batch and trains a part of its model: what the second defense will need."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fastdef.data import Dataset
from fastdef.training import TrainConfig, fit
from fastdef.training.state import State


class Doubled:
    """Trains the last layer alone, on the batch and on a noisy copy of it."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        self.seeds = []

    def config(self):
        return {"name": "doubled"}

    def parameters(self):
        return self.model[2].parameters()

    def running(self):
        return nullcontext()

    def training_mode(self):
        self.model.train()

    def prepare(self, images, labels, *, seed):
        self.seeds.append(seed)
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
        return torch.cat([images, images + noise]), labels.repeat(2)

    def loss(self, images, labels):
        loss = cross_entropy(self.model(images).float(), labels)
        return loss, {"images": torch.tensor(float(len(images)))}

    def update_bn(self, model, batches):
        pass

    def validate(self, model, dataset):
        return {"accuracy": 0.5}


def data(count=24):
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return Dataset(pixels.to(torch.uint8), torch.arange(count) % 2, ("a", "b"), "noise", "fit")


def run(method, folder, *, save=lambda model, record: None, sets=None, resume=False, **options):
    config = TrainConfig(**{"epochs": 2, "batch_size": 8, "lr": 0.1, "seed": 3, **options})
    return fit(method, *(sets or (data(), data(10))), config, folder, save=save, resume=resume)


def test_only_the_trained_weights_change_and_each_step_has_a_seed_of_its_own(tmp_path):
    method = Doubled()
    before = {name: value.clone() for name, value in method.model.state_dict().items()}

    figures = run(method, tmp_path)

    after = method.model.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["2.weight"], before["2.weight"])
    assert len(set(method.seeds)) == 6
    assert figures["train_images"] == 16.0
    assert figures["accuracy"] == 0.5


def test_the_schedule_runs_over_all_epochs(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(TrainConfig, "rate", lambda self, step, steps: asked.append((step, steps)) or 0.1)

    run(Doubled(), tmp_path)

    assert asked == [(step, 3) for step in range(6)]


def test_what_is_saved_is_a_copy_in_eval_mode(tmp_path):
    method = Doubled()
    saved = []

    run(method, tmp_path, save=lambda model, record: saved.append((model, record["epochs"])))

    assert [epochs for _, epochs in saved] == [1, 2]
    assert not saved[1][0].training
    assert saved[1][0] is not method.model
    assert torch.equal(saved[1][0][2].weight, method.model[2].weight)
    assert not torch.equal(saved[0][0][2].weight, method.model[2].weight)


def test_figures_of_validation_that_are_not_finite_stop_the_run_before_it_saves(tmp_path):
    method = Doubled()
    method.validate = lambda model, dataset: {"accuracy": float("nan")}

    with pytest.raises(ValueError, match="accuracy of epoch 1 is not finite but nan; no file was written"):
        run(method, tmp_path, save=lambda model, record: pytest.fail("it was saved"))

    assert list(tmp_path.iterdir()) == []


def test_where_saving_fails_the_state_stays_that_of_the_epoch_before(tmp_path):
    def full(model, record):
        if record["epochs"] == 2:
            raise ValueError("cannot write: no space left")

    with pytest.raises(ValueError, match="no space"):
        run(Doubled(), tmp_path / "cut", save=full)
    method = Doubled()
    run(method, tmp_path / "cut", resume=True)

    whole = Doubled()
    run(whole, tmp_path / "whole")
    assert torch.equal(method.model[2].weight, whole.model[2].weight)


def test_fewer_images_than_a_batch_are_one_batch(tmp_path):
    method = Doubled()

    assert run(method, tmp_path, batch_size=100)["train_images"] == 48.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda fit, held: (replace(fit, images=255 - fit.images), held), r"data\.sha256 was \w+, got \w+$"),
        (lambda fit, held: (replace(fit, labels=1 - fit.labels), held), r"data\.sha256 was"),
        (lambda fit, held: (replace(fit, classes=("b", "a")), held), r"data\.classes\.0 was a, got b$"),
        (lambda fit, held: (replace(fit, images=fit.images.view(-1, 1, 2, 8)), held), r"data\.shape was"),
        (lambda fit, held: (replace(fit, flip=False), held), r"data\.flip was True, got False"),
        (lambda fit, held: (fit, replace(held, images=255 - held.images)), r"data\.validation_sha256 was"),
    ],
    ids=["images", "labels", "classes", "shape", "flip", "validation"],
)
def test_a_run_goes_on_with_the_same_data_alone(tmp_path, change, told):
    run(Doubled(), tmp_path)

    with pytest.raises(ValueError, match=told):
        run(Doubled(), tmp_path, sets=change(data(), data(10)), resume=True)


def test_a_run_of_a_version_that_kept_less_of_its_settings_is_refused(tmp_path):
    run(Doubled(), tmp_path)
    state = State.read(tmp_path)
    state.config["data"] = {name: state.config["data"][name] for name in ("name", "split", "images", "augment")}
    state.write(tmp_path)

    with pytest.raises(ValueError, match=r"^--resume needs the settings the run began with: .*, got a$"):
        run(Doubled(), tmp_path, resume=True)


def test_data_are_hashed_once_a_run(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(Dataset, "digest", lambda self: hashed.append(len(self)) or "0")

    run(Doubled(), tmp_path)

    assert hashed == [24, 10]


def test_where_a_finished_run_cannot_write_its_model_again_it_says_why(tmp_path):
    def full(model, record):
        raise ValueError("cannot write: no space left")

    run(Doubled(), tmp_path)

    with pytest.raises(ValueError, match="no space"):
        run(Doubled(), tmp_path, save=full, resume=True)
