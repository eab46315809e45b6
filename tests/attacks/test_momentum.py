"""MI-FGSM's momentum, by hand."""

import pytest
import torch

from fastdef.attacks import mifgsm


class Turning(torch.nn.Module):
    """Cross-entropy whose gradient turns round once x has passed 0.52, but is weaker than the momentum then."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        value = x.mean((1, 2, 3))
        return torch.stack([-(value - 0.52).abs() * self.weight, torch.zeros_like(value)], 1)


@pytest.mark.parametrize(("decay", "expected"), [(1.0, 0.54), (0.0, 0.52)])
def test_the_past_carries_an_image_past_a_turn(decay, expected):
    images, labels = torch.full((2, 1, 3, 3), 0.5), torch.ones(2, dtype=torch.int64)

    found = mifgsm(Turning().eval(), images, labels, eps=0.1, step=0.01, steps=4, decay=decay)

    # g: +1, +1 (at 0.51), then at 0.52 and above -1: with the past +1, 0; without it back at once.
    torch.testing.assert_close(found, torch.full_like(images, expected), rtol=0, atol=0.011)


def test_it_is_the_paper_s_loop():
    """By hand, since foolbox leaves the division by |g|_1 out: it accumulates raw gradients."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(48, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5)
    ).eval()
    images, labels = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    x, past = images, torch.zeros_like(images)
    for _ in range(7):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), labels, reduction="sum"), x)
        past = 0.9 * past + g / g.abs().sum((1, 2, 3), keepdim=True)
        x = torch.clamp(images + (x + 0.02 * past.sign() - images).clamp(-0.1, 0.1), 0, 1)

    found = mifgsm(model, images, labels, eps=0.1, step=0.02, steps=7, decay=0.9)

    torch.testing.assert_close(found, x.detach())
    assert not torch.allclose(mifgsm(model, images, labels, eps=0.1, step=0.02, steps=7, decay=0.0), found, atol=1e-3)


class Given:
    """A loss whose gradient at each step is the next of these rows."""

    def __init__(self, *gradients):
        self.gradients = list(gradients)

    def __call__(self, logits, labels):
        return (logits * torch.tensor(self.gradients.pop(0))).sum(1)


def taken(*gradients, **options):
    """Where gray images of two pixels end, in steps of 0.1."""
    images = torch.full((len(gradients[0]), 2, 1, 1), 0.5)
    labels = torch.zeros(len(images), dtype=torch.int64)
    how = {"eps": 0.5, "step": 0.1, "steps": len(gradients), "loss": Given(*gradients), **options}
    scale = torch.ones(1, requires_grad=True)
    found = mifgsm(lambda x: x.flatten(1) * scale, images, labels, **how)
    return ((found - images).flatten(1) / 0.1).round().int().tolist()


def test_each_gradient_counts_by_its_direction_whatever_its_size():
    assert taken([[99.0, 1.0]], [[-1e-3, -1e-3]]) == [[2, 0]]  # (0.99, 0.01) - (0.5, 0.5): on, and back


def test_an_image_s_gradient_is_measured_by_its_own_size():
    assert taken([[99.0, 1.0], [1.0, 1.0]], [[-1.0, -1.0], [-1e3, -1e3]]) == [[2, 0], [1, 1]]


def test_the_past_counts_as_much_as_the_present_where_no_decay_is_given():
    first, second = [[4.0, 1.0]], [[-3.0, -2.0]]

    assert taken(first, second) == taken(first, second, decay=1.0) == [[2, 0]]
    assert taken(first, second, decay=0.5) == [[0, 0]]
