"""Stage II: what learns, what does not, and what it learns from."""

import copy

import pytest
import torch

from fastdef.data import Dataset
from fastdef.nn import build, convert_to_afa, convert_to_multi_bn, fusing_weights, parse_architecture
from fastdef.training import Fusing, TrainConfig, fit

XI = [0.0, 8 / 255]


def network(placement="shared"):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1))
    model(torch.rand(8, 1, 12, 12))
    model = convert_to_multi_bn(model, 2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".bn" in name or name.startswith("bn"):
                weight[1] *= 0.5  # branches that answer differently
    return convert_to_afa(model, placement=placement)


def data(count=32):
    pixels = torch.randint(0, 256, (count, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    return Dataset(pixels.to(torch.uint8), torch.arange(count) % 10, tuple("abcdefghij"), "noise", "fit")


@pytest.mark.parametrize("placement", ["shared", "layerwise"])
def test_training_changes_the_generators_and_nothing_else_bitwise(placement, tmp_path):
    method = Fusing(network(placement), XI)
    before = copy.deepcopy(method.model.state_dict())

    figures = fit(
        method,
        data(),
        data(),
        TrainConfig(epochs=1, batch_size=16, lr=0.1),
        tmp_path,
        save=lambda model, record: None,
        augment=False,
    )

    changed = {name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("weight_generator." in name for name in changed)
    assert any("layers.1.running_mean" in name for name in changed)  # the generator's own batch norms do learn
    assert {"accuracy", "robust_accuracy", "clean_w1", "attacked_w1"} <= figures.keys()


def test_crafting_moves_no_statistics_and_strengths_are_mixed():
    method = Fusing(network(), XI)
    method.training_mode()
    before = copy.deepcopy(method.model.state_dict())
    images, labels = data().floats(0, 32), data().labels

    crafted, same, _ = method.prepare(images, labels, seed=0)

    reach = (crafted - images).abs().amax((1, 2, 3))
    assert torch.equal(same, labels)
    assert 4 < int((reach == 0).sum()) < 28  # strength 0 by chance
    assert reach.max() <= 8 / 255 + 1e-6
    assert (reach[reach > 0] > 7 / 255).all()
    assert all(torch.equal(value, before[key]) for key, value in method.model.state_dict().items())


def test_the_attack_goes_through_the_whole_model_generators_included():
    method = Fusing(network(), [8 / 255])
    images, labels = data().floats(0, 32), data().labels
    through = method.prepare(images, labels, seed=0)[0]
    with torch.no_grad():  # a generator of another mind
        for weight in method.parameters():
            weight.neg_()
        assert (fusing_weights(method.model, images)[1] != 0.5).all()

    assert not torch.equal(method.prepare(images, labels, seed=0)[0], through)


def test_an_attack_of_one_step_moves_no_pixel_by_more_than_that_and_is_on_record():
    method = Fusing(network(), [8 / 255], attack_steps=1)
    images, labels = data().floats(0, 32), data().labels
    calls = []
    method._objective = lambda x, y: calls.append(1) or method._inner(x, y)

    crafted, *_ = method.prepare(images, labels, seed=0)

    assert len(calls) == 1
    assert (crafted - images).abs().max() <= 8 / 255 + 1e-6
    assert method.config()["steps"] == 1
    assert "steps" not in Fusing(network(), [8 / 255]).config()


def test_a_supervised_generator_learns_to_tell_strengths_which_cross_entropy_alone_does_not_ask_for():
    weights = {}
    for supervision in (0.0, 10.0):
        method = Fusing(network(), XI, supervision=supervision)
        method.training_mode()
        images, labels, shares = method.prepare(data().floats(0, 32), data().labels, seed=0)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            method.loss(images, labels, shares)[0].backward()
            optimizer.step()
        w1 = 1 - fusing_weights(method.model, images)[1][:, 0].detach()
        weights[supervision] = float(w1[shares == 1].mean() - w1[shares == 0].mean())

    assert set(shares.tolist()) == {0.0, 1.0}
    assert weights[10.0] > 0.5
    assert abs(weights[0.0]) < 0.2
    assert method.config()["supervision"] == 10.0


@pytest.mark.parametrize(("strengths", "supervision"), [(XI, -1.0), (XI, float("nan")), ([0.0], 1.0)])
def test_a_supervision_without_sense_is_refused(strengths, supervision):
    with pytest.raises(ValueError, match="a supervision from 0 up"):
        Fusing(network(), strengths, supervision=supervision)


def test_a_model_without_a_generator_is_refused():
    plain = build(parse_architecture("wrn-10-1"))

    with pytest.raises(ValueError, match="made by convert_to_afa, got a WideResNet"):
        Fusing(plain, XI)
    with pytest.raises(ValueError, match="strengths from 0 up"):
        Fusing(network(), [])
