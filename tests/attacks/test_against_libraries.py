"""Ours beside the libraries that the field uses, on the shipped AFA model and images."""

import logging
import warnings

import pytest
import torch

import fastdef
from fastdef.assets import ASSETS
from fastdef.attacks import apgd, apgd_targeted, cross_entropy, dlr, margin, pgd
from fastdef.data import load_dataset

COUNT, EPS, ITERATIONS = 200, 16 / 255, 25
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return fastdef.load(ASSETS / "afa.safetensors").model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def batch():
    dataset = load_dataset("fashion-mnist", "test", root=ASSETS).take(COUNT)
    return dataset.floats(0, COUNT), dataset.labels


@pytest.fixture(scope="module")
def autoattack(model):
    from pyautoattack import AutoAttack

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    attack = AutoAttack(model, eps=EPS, seed=0)
    for part in (attack.apgd, attack.apgd_targeted):
        part.n_iter, part.n_restarts, part.n_target_classes, part.seed = ITERATIONS, 1, 2, 0
        part.n_iter_2, part.n_iter_min, part.size_decr = (max(int(s * ITERATIONS), 1) for s in (0.22, 0.06, 0.03))
    return attack


def left(model, attacked, labels):
    with torch.no_grad():
        return float((model(attacked).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("name", "loss"), [("ce", cross_entropy), ("dlr", dlr)])
def test_apgd_leaves_what_autoattack_s_leaves(model, batch, autoattack, name, loss):
    autoattack.apgd.loss = name

    theirs = left(model, autoattack.apgd.perturb(*batch), batch[1])
    ours = left(model, apgd(model, *batch, eps=EPS, iterations=ITERATIONS, loss=loss, generator=seeded()), batch[1])

    assert abs(ours - theirs) <= 0.01


def test_targeted_apgd_leaves_what_autoattack_s_leaves(model, batch, autoattack):
    theirs = left(model, autoattack.apgd_targeted.perturb(*batch), batch[1])
    ours = apgd_targeted(model, *batch, eps=EPS, iterations=ITERATIONS, targets=2, generator=seeded())

    assert abs(left(model, ours, batch[1]) - theirs) <= 0.01


@pytest.mark.parametrize("loss", ["cross-entropy", "C&W"])
def test_pgd_is_foolbox_s_bit_for_bit_by_either_loss(model, batch, loss):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what SciPy has moved
        import foolbox
    images, labels = batch

    class CarliniWagner(foolbox.attacks.LinfPGD):
        """Its loop on the margin, which it calls a logit difference."""

        def get_loss_fn(self, model, labels):
            def loss(inputs):
                logits = model(inputs).raw
                own = torch.nn.functional.one_hot(labels.raw, logits.shape[1]).bool()
                best_other = logits.masked_fill(own, -torch.inf).amax(1)
                hinge = torch.relu(logits[own] - best_other + 50)
                return type(inputs)(-hinge.sum())

            return loss

    kind = {"cross-entropy": foolbox.attacks.LinfPGD, "C&W": CarliniWagner}[loss]
    attack = kind(abs_stepsize=2 / 255, steps=10, random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=EPS)
    ours = pgd(
        model,
        images,
        labels,
        eps=EPS,
        step=2 / 255,
        steps=10,
        random_start=False,
        loss=cross_entropy if loss == "cross-entropy" else margin,
    )

    assert torch.equal(ours, theirs)
    assert left(model, ours, labels) == left(model, theirs, labels)


def seeded():
    return torch.Generator().manual_seed(0)
