import pytest
import torch
from torch import nn

from fastdef.defense import ActiveDefense, choose_layers
from fastdef.nn import Normalize, WideResNet


class Network(nn.Module):
    """Its groups are a stem, one that is called twice, and one that gives no map."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.twice(self.pool(self.twice(self.stem(x)))).flatten(1))


@pytest.fixture
def images():
    return torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_a_layer_that_is_called_once_and_gives_a_map_is_a_choice(images):
    (choice,) = choose_layers(Network().eval(), images)

    assert choice.name == "stem"
    assert choice.features == 8 * 10 * 10
    assert choice.cost == pytest.approx(8 * 27 * 100 / (8 * 27 * 100 + 8 * 4))
    assert choice.beta == pytest.approx(80 * 800 / (160 * 32 * 32))


def test_the_normalized_image_is_no_layer(images):
    model = nn.Sequential(Normalize([0.5] * 3, [0.2] * 3), Network()).eval()

    assert [choice.name for choice in choose_layers(model, images)] == ["1.stem"]


def test_the_figures_are_of_the_images_and_of_their_noise(images):
    torch.manual_seed(0)
    model = WideResNet(10, 1).eval()

    quiet = {choice.name: choice for choice in choose_layers(model, images, sigma=0.0)}
    noisy = {choice.name: choice for choice in choose_layers(model, images, sigma=0.3)}

    assert {"block1", "block2", "block3"} <= set(quiet)
    assert not {"block1.layer"} & set(quiet)  # the same features under another name
    features = model.block1(model.conv1(images)).flatten(1)
    loss = (features - features.mean(1, keepdim=True)).abs().mean()
    assert quiet["block1"].loss == pytest.approx(loss.item(), rel=1e-4)
    assert quiet["block1"].lift == pytest.approx(0, abs=1e-9)
    assert noisy["block1"].noised > noisy["block1"].loss
    assert quiet["block1"].cost < quiet["block2"].cost < quiet["block3"].cost <= 1


def test_the_first_is_within_half_a_forward_and_defends(images):
    model = WideResNet(10, 1).eval()

    first, *rest = choose_layers(model, images)

    assert first.cost <= 0.5
    assert all(first.lift >= other.lift for other in rest if other.cost <= 0.5)
    defense = ActiveDefense(model, first.name, beta=first.beta, compile=False, delta=1.0)
    assert defense(images).isfinite().all()


def test_bad_input_is_refused(images):
    with pytest.raises(ValueError, match="two images or more, got 1"):
        choose_layers(Network().eval(), images[:1])
    with pytest.raises(ValueError, match="eval mode"):
        choose_layers(Network(), images)
    with pytest.raises(ValueError, match="a layer that is called once"):
        choose_layers(nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).eval(), images)
