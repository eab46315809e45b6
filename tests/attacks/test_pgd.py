import threading
import warnings

import pytest
import torch
from torch import nn

from fastdef.attacks import cross_entropy, fgsm, frozen_eval, margin, mifgsm, pgd, projected_ascent, step_size

ATTACKS = {
    "fgsm": lambda model, x, y, eps: fgsm(model, x, y, eps=eps),
    "pgd": lambda model, x, y, eps: pgd(model, x, y, eps=eps, step=eps / 4, steps=5),
    "mifgsm": lambda model, x, y, eps: mifgsm(model, x, y, eps=eps, step=eps / 4, steps=5),
    "margin": lambda model, x, y, eps: pgd(model, x, y, eps=eps, step=eps / 4, steps=5, loss=margin),
}


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, 8, 8, generator=generator), torch.randint(0, 4, (6,), generator=generator)


def loss_of(model, images, labels):
    with torch.no_grad():
        return nn.functional.cross_entropy(model.eval()(images), labels)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("eps", [0.0, 1 / 255, 8 / 255, 0.7])
def test_an_attack_stays_in_the_ball_and_in_range(model, batch, name, eps):
    images, labels = batch

    attacked = ATTACKS[name](model, images, labels, eps)

    assert (attacked - images).abs().max() <= eps + 1e-7  # an ulp of a float near 1
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    if eps == 0:
        assert torch.equal(attacked, images)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_raises_the_loss(model, batch, name):
    images, labels = batch

    attacked = ATTACKS[name](model, images, labels, 8 / 255)

    assert loss_of(model, attacked, labels) > loss_of(model, images, labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_the_model_as_it_was(model, batch, name):
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    ATTACKS[name](model, *batch, 8 / 255)

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(weight.grad is None for weight in model.parameters())
    assert [weight.requires_grad for weight in model.parameters()] == [False, True, True, True, True, True]


def test_a_model_that_fails_is_left_as_it_was(model, batch):
    model.train()
    model.append(nn.Linear(3, 3))

    with pytest.raises(RuntimeError):
        ATTACKS["pgd"](model, *batch, 8 / 255)

    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_model_under_two_attacks_is_restored_by_the_last_to_leave(model, batch):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with frozen_eval(model):
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with frozen_eval(model):
            second_in.set()
            first_out.wait(10)
            model(batch[0])

    threads = [threading.Thread(target=attack) for attack in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_eps_per_image_equals_one_attack_for_each_eps_bit_for_bit(model, batch, loss):
    images, labels = batch
    eps = torch.tensor([0.0, 1, 2, 4, 8, 16]) / 255

    together = pgd(model, images, labels, eps=eps, step=eps / 4, steps=5, random_start=False, loss=loss)

    for index, radius in enumerate(eps.tolist()):
        # the whole batch, because a convolution may round otherwise in another batch size
        single = pgd(model, images, labels, eps=radius, step=radius / 4, steps=5, random_start=False, loss=loss)
        assert torch.equal(together[index], single[index])


def test_an_attack_on_one_image_does_not_depend_on_its_neighbours(model, batch):
    images, labels = batch

    together = pgd(model, images, labels, eps=8 / 255, step=2 / 255, steps=5, random_start=False)

    for index in range(len(images)):
        alone = slice(index, index + 1)
        single = pgd(model, images[alone], labels[alone], eps=8 / 255, step=2 / 255, steps=5, random_start=False)
        torch.testing.assert_close(together[alone], single, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", [pgd, mifgsm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_any_shape_and_dtype_stays_in_its_ball(attack, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    n, channels, height, width = (int(size) for size in torch.randint(1, 9, (4,), generator=generator))
    images = torch.rand(n, channels, height, width, generator=generator).to(dtype)
    labels = torch.randint(0, 3, (n,), generator=generator)
    eps = torch.rand(n, generator=generator).to(dtype) / 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 3)).to(dtype)

    attacked = attack(model, images, labels, eps=eps, step=eps / 2, steps=3)

    moved = (attacked.double() - images.double()).abs()
    assert (moved - eps.double().view(-1, 1, 1, 1)).max() <= torch.finfo(dtype).eps
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_the_generator_decides_the_start(model, batch):
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return pgd(model, *batch, eps=0.1, step=0.02, steps=2, generator=generator)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize("steps", [1, 10])
def test_pgd_equals_foolbox_bit_for_bit(model, batch, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what SciPy has moved
        foolbox = pytest.importorskip("foolbox", reason="foolbox is an optional oracle")
    images, labels = batch
    model.eval()

    ours = pgd(model, images, labels, eps=8 / 255, step=2 / 255, steps=steps, random_start=False)

    attack = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=steps, random_start=False)
    _, theirs, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=8 / 255)
    assert torch.equal(ours, theirs)


def test_margin_is_the_published_formula():
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.0, 60.0, 1.0]])

    loss = margin(logits, torch.tensor([0, 0]))

    torch.testing.assert_close(loss, torch.tensor([-(3.0 - 1.0 + 50.0), -0.0]))


def test_ascent_takes_any_objective():
    images = torch.full((2, 1, 2, 2), 0.5)

    raised = projected_ascent(lambda x: x.sum((1, 2, 3)), images, eps=0.25, step=0.1, steps=9, start=images)

    assert torch.equal(raised, torch.full_like(images, 0.75))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"needs \(6,\) int64 labels"),
        ({"labels": torch.zeros(6)}, "int64 labels"),
        ({"eps": -0.1}, "eps in pixel units, such as 8/255, from 0 to 1, got -0.1"),
        ({"eps": 8}, "eps in pixel units, such as 8/255, from 0 to 1, got 8"),
        ({"eps": torch.tensor([0, 0.1, 0.2, 0.3, 1, 1.1])}, "eps in pixel units"),
        ({"eps": float("nan")}, "eps in pixel units"),
        ({"eps": torch.zeros(3)}, r"eps as a number or of shape \(6,\)"),
        ({"eps": torch.zeros(7)}, r"eps as a number or of shape \(6,\)"),
        ({"step": -0.5}, "finite step of at least 0, got -0.5"),
        ({"step": float("inf")}, "finite step"),
        ({"steps": 0}, "at least one step"),
        ({"steps": 1.5}, "a whole number"),
        ({"labels": torch.full((6,), 4)}, "4 classes, got a label 4"),
        ({"labels": torch.full((6,), 9)}, "4 classes, got a label 9"),
        ({"images": torch.full((6, 3, 8, 8), 2.0)}, r"in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(model, batch, change, message):
    images, labels = batch
    arguments = {"images": images, "labels": labels, "eps": 0.1, "step": 0.1, "steps": 1, **change}

    with pytest.raises(ValueError, match=message):
        pgd(model, **arguments)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_gives_no_gradient_is_refused(model, batch, name):
    for detached in (lambda images: model(images).detach(), lambda images: model(images.detach())):
        with pytest.raises(ValueError, match=r"need a differentiable model; for a defense see Target\.defended"):
            ATTACKS[name](detached, *batch, 0.1)


def test_inference_mode_is_refused(model, batch):
    with torch.inference_mode(), pytest.raises(ValueError, match="needs gradients"):
        pgd(model, *batch, eps=0.1, step=0.1, steps=1)


def test_fgsm_asks_once_at_the_image_itself(model, batch):
    images, labels = batch
    asked = []
    model[0].register_forward_hook(lambda module, inputs, output: asked.append(inputs[0].detach().clone()))

    fgsm(model, images, labels, eps=0.1)

    assert len(asked) == 1
    assert torch.equal(asked[0], images)


def test_a_step_is_two_and_a_half_radii_over_their_number_and_at_most_one():
    assert step_size(0.08, 20) == pytest.approx(0.01)
    assert step_size(0.08, 2) == 0.08


def test_the_whole_range_is_a_radius(model, batch):
    assert pgd(model, *batch, eps=1.0, step=0.5, steps=1).shape == batch[0].shape
