"""The loop under a method that crafts its batch and trains a part of its model: what the second defense will need."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fastdef.data import Dataset
from fastdef.training import Hyper, fit


class Doubled:
    """Trains the last layer alone, on the batch and on a noisy copy of it."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
        self.seeds = []

    def config(self):
        return {"name": "doubled"}

    def trained(self):
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

    def settle(self, model, batches):
        pass

    def validate(self, model, dataset):
        return {"accuracy": 0.5}


def data(count=24):
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return Dataset(pixels.to(torch.uint8), torch.arange(count) % 2, ("a", "b"), "noise", "fit")


def run(method, folder, *, save=lambda model, record: None, **options):
    hyper = Hyper(**{"epochs": 2, "batch_size": 8, "lr": 0.1, "seed": 3, **options})
    return fit(method, data(), data(10), hyper, folder, save=save)


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
    monkeypatch.setattr(Hyper, "rate", lambda self, step, steps: asked.append((step, steps)) or 0.1)

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
    hyper = Hyper(epochs=2, batch_size=8, lr=0.1, seed=3)
    fit(method, data(), data(10), hyper, tmp_path / "cut", save=lambda model, record: None, resume=True)

    whole = Doubled()
    run(whole, tmp_path / "whole")
    assert torch.equal(method.model[2].weight, whole.model[2].weight)


def test_fewer_images_than_a_batch_are_one_batch(tmp_path):
    method = Doubled()

    assert run(method, tmp_path, batch_size=100)["train_images"] == 48.0
