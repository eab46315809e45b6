"""What attack libraries are given: it answers as deployed, its gradient is straight-through, and they run on it."""

from dataclasses import replace

import pytest
import torch

from fastdef.assets import ASSETS
from fastdef.attacks import pgd
from fastdef.checkpoint import load
from fastdef.data import load_dataset
from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet

EPS, STEP, STEPS, COUNT = 8 / 255, 2 / 255, 5, 32


@pytest.fixture(scope="module")
def shipped():
    return ActiveDefense.from_checkpoint(load(ASSETS / "smoothing.safetensors"), compile=False, max_steps=20)


@pytest.fixture(scope="module")
def batch():
    dataset = load_dataset("fashion-mnist", "test", root=ASSETS)
    return dataset.floats(0, COUNT), dataset.labels[:COUNT]


@pytest.mark.parametrize("loops", [1, 3])
def test_it_answers_as_the_defense_does_under_the_same_ids(defense_for, model, images, loops, monkeypatch):
    defense = defense_for(model, images, outer_loops=loops)
    drawn = [torch.arange(4) + 100 * loop for loop in range(loops)]
    answers = [defense.smooth(images[:4], ids=ids).images for ids in drawn]
    remaining = iter(drawn)
    monkeypatch.setattr(torch, "randint", lambda *given: next(remaining))

    logits = defense.attackable()(images[:4])

    expected = torch.stack([model(smoothed).softmax(1) for smoothed in answers]).mean(0).log()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_its_gradient_is_the_classifier_s_at_the_smoothed_image_and_the_weights_get_none(defense_for, images):
    model = WideResNet(10, 1, in_channels=1).eval()
    defense = defense_for(model, images)
    attackable, x = defense.attackable(), images[:3].clone().requires_grad_()

    torch.manual_seed(1)
    attackable(x)[:, 0].sum().backward()

    torch.manual_seed(1)
    t = defense.smooth(images[:3], ids=torch.randint(1 << 62, (3,))).images.requires_grad_()
    (expected,) = torch.autograd.grad(model(t).log_softmax(1)[:, 0].sum(), t)
    torch.testing.assert_close(x.grad, expected)
    assert all(weight.grad is None for weight in model.parameters())


def test_every_call_has_new_noise_and_a_seed_repeats_it(defense_for, model, images):
    attackable = defense_for(model, images).attackable(samples=2)

    first, second = attackable(images[:2]), attackable(images[:2])
    torch.manual_seed(0)
    third = attackable(images[:2])
    torch.manual_seed(0)

    assert not torch.equal(first, second)
    assert torch.equal(attackable(images[:2]), third)


def test_it_stays_in_eval_mode_and_takes_what_rounding_leaves_outside(defense_for, model, images):
    attackable = defense_for(model, images).attackable().train()

    assert not any(module.training for module in attackable.modules())
    assert attackable(images[:2] + 1e-6).isfinite().all()


@pytest.mark.parametrize(("options", "message"), [({"gradient": "true"}, "bpda"), ({"samples": 0}, "samples > 0")])
def test_bad_parameters_are_refused(shipped, options, message):
    with pytest.raises(ValueError, match=message):
        shipped.attackable(**options)


def foolbox(model, images, labels):
    library = pytest.importorskip("foolbox")
    attack = library.attacks.LinfPGD(abs_stepsize=STEP, rel_stepsize=None, steps=STEPS)
    return attack(library.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=EPS)[1]


def autoattack(model, images, labels):
    pytest.importorskip("pyautoattack")
    from fastdef.evaluation.adaptive import BUDGETS
    from fastdef.evaluation.adaptive.autoattack import rand

    effort = replace(BUDGETS["smoke"].autoattack, iterations=STEPS, eot=1)
    _, (_, attacked, *_) = rand(model, images, labels, eps=EPS, effort=effort, seed=0)
    return attacked


def torchattacks(model, images, labels):
    library = pytest.importorskip("torchattacks", reason="needs it: make .venv/.attacks")
    return library.PGD(model, eps=EPS, alpha=STEP, steps=STEPS)(images, labels)


def toolbox(model, images, labels):
    evasion = pytest.importorskip("art.attacks.evasion", reason="needs fastdef[attacks]")
    from art.estimators.classification import PyTorchClassifier

    loss = torch.nn.CrossEntropyLoss()
    shape = tuple(images.shape[1:])
    classifier = PyTorchClassifier(model, loss, shape, nb_classes=10, clip_values=(0, 1), device_type="cpu")
    attack = evasion.ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, verbose=False
    )
    return torch.from_numpy(attack.generate(images.numpy(), y=labels.numpy()))


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(
    "library", [foolbox, autoattack, *(pytest.param(one, marks=pytest.mark.slow) for one in (torchattacks, toolbox))]
)
def test_a_library_s_attack_leaves_what_ours_leaves(shipped, batch, library):
    """Of 32 images each; three standard deviations of the difference of two such shares are 0.37."""
    images, labels = batch
    model = shipped.attackable()

    def left(attacked):
        logits = shipped.defend(attacked.clamp(0, 1), ids=torch.arange(1000, 1000 + COUNT)).logits
        return float((logits.argmax(1) == labels).float().mean())

    theirs = left(library(model, images, labels))

    assert theirs < left(images) - 0.1
    assert abs(theirs - left(pgd(model, images, labels, eps=EPS, step=STEP, steps=STEPS))) < 0.37
