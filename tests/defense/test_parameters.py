import numpy as np
import pytest
import torch
from torch import nn

from fastdef.defense import ActiveDefense
from fastdef.nn import WideResNet


class Fixed(nn.Module):
    """A classifier that has no weights; and where ``buffered``, a buffer."""

    def __init__(self, *, buffered):
        super().__init__()
        self.features = nn.AvgPool2d(2)
        self.register_buffer("shift", torch.zeros(36) if buffered else None)

    def forward(self, x):
        found = self.features(x).flatten(1)
        return found if self.shift is None else found + self.shift


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5, 1.5])
def test_what_is_no_image_is_flagged_and_its_neighbours_are_bitwise_what_they_were(defense_for, model, images, bad):
    defense = defense_for(model, images, deterministic=True)
    spoilt = images.clone()
    spoilt[5, 0, 3, 3] = bad

    answers, expected = defense.defend(spoilt, on_invalid="flag"), defense.defend(images)

    others = torch.arange(len(images)) != 5
    assert answers.invalid.nonzero().flatten().tolist() == [5]
    assert not answers.converged[5]
    assert bool(answers.logits[5].isnan().all())
    assert torch.equal(answers.logits[others], expected.logits[others])
    assert torch.equal(answers.images[others], expected.images[others])
    assert not expected.invalid.any()


def test_a_stream_flags_what_is_no_image_in_its_place(defense_for, model, images):
    defense = defense_for(model, images)
    spoilt = [image if number % 7 else image * torch.nan for number, image in enumerate(images)]

    answers = list(defense.stream(iter(spoilt), on_invalid="flag"))

    assert [number for number, answer in enumerate(answers) if answer.invalid] == [0, 7, 14, 21]
    assert all(bool(answer.logits.isfinite().all()) != answer.invalid for answer in answers)
    with pytest.raises(ValueError, match="NaN or Inf"):
        list(defense.stream(iter(spoilt)))


def test_another_way_with_invalid_images_is_refused(defense_for, model, images):
    with pytest.raises(ValueError, match="on_invalid as 'raise' or 'flag', got 'skip'"):
        defense_for(model, images).defend(images, on_invalid="skip")


def test_a_stream_with_fewer_ids_than_images_is_refused_and_not_cut_short(defense_for, model, images):
    defense = defense_for(model, images)

    with pytest.raises(ValueError, match="an id for every image, got more images than ids"):
        list(defense.stream(iter(images[:3]), ids=[5, 6]))


@pytest.mark.parametrize("use", ["defend", "smooth", "calibrate"])
def test_images_of_other_channels_than_the_network_takes_are_refused_in_one_line(defense_for, model, images, use):
    defense = defense_for(model, images)

    with pytest.raises(ValueError, match=r"^the model does not take images of shape \(3, 12, 12\): .+$") as told:
        getattr(defense, use)(torch.rand(2, 3, 12, 12))

    assert "\n" not in str(told.value)


def test_images_that_only_the_classifier_s_head_does_not_take_are_refused_too(images):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 8 * 8, 3)).eval()

    with pytest.raises(ValueError, match=r"the model does not take images of shape \(1, 12, 12\)"):
        ActiveDefense(head, "0", compile=False, max_steps=1).defend(images[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_refused_at_once_and_when_they_become_it(images, dtype):
    model = WideResNet(10, 1, in_channels=1).eval()
    defense = ActiveDefense(model, compile=False)
    model.to(dtype)

    with pytest.raises(ValueError, match=f"a model in float32 or float64, got conv1.weight in {dtype}"):
        defense.defend(images[:1])
    with pytest.raises(ValueError, match="a model in float32 or float64"):
        ActiveDefense(model, compile=False)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_model_without_weights_is_defended(images, buffered):
    defense = ActiveDefense(Fixed(buffered=buffered).eval(), "features", beta=3.0, compile=False)
    defense.calibrate(images, ratio=0.5)

    answers = defense.defend(images[:3])

    assert answers.converged.all()
    assert answers.steps.min() > 0
    assert answers.logits.shape == (3, 36)


@pytest.mark.parametrize("id", [1.5, -1, 2**63, "a", torch.tensor(0.5)])
def test_a_stream_refuses_an_id_that_is_none(defense_for, model, images, id):
    defense = defense_for(model, images)

    with pytest.raises(ValueError, match=r"ids that are whole, from 0 up and below 2\*\*63, got "):
        list(defense.stream(iter(images[:1]), ids=iter([id])))


@pytest.mark.parametrize("ids", [[2**63 - 1, 7], np.array([2**63 - 1, 7]), torch.tensor([2**63 - 1, 7])])
def test_a_stream_takes_every_id_that_a_batch_takes(defense_for, model, images, ids):
    defense = defense_for(model, images)

    streamed = torch.stack([answer.image for answer in defense.stream(iter(images[:2]), ids=ids)])

    expected = defense.defend(images[:2], ids=torch.tensor([2**63 - 1, 7])).images
    torch.testing.assert_close(streamed, expected)


@pytest.mark.parametrize(("name", "least"), [("ids", 0), ("budgets", 1)])
def test_what_stands_beside_a_batch_is_a_tensor_of_whole_numbers(defense_for, model, images, name, least):
    defense = defense_for(model, images)

    for bad, got in [
        ([1, 2, 3], "list$"),
        (torch.ones(3), "torch.float32$"),
        (torch.ones(2, dtype=torch.int64), r"\(2,\) torch.int64$"),
        (torch.tensor([1, least - 1, 1]), f"{least - 1}$"),
    ]:
        with pytest.raises(ValueError, match=rf"a tensor of \(3,\) int64 {name} from {least} up, got .*{got}"):
            defense.defend(images[:3], **{name: bad})


def test_noise_that_is_no_tensor_is_refused(defense_for, model, images):
    with pytest.raises(ValueError, match=r"noise of the images' shape \(1, 1, 12, 12\), got ndarray"):
        defense_for(model, images).smooth(images[:1], noise=np.zeros((1, 1, 12, 12)))


@pytest.mark.parametrize(
    ("item", "got"),
    [((torch.zeros(1, 12, 12), 3), "tuple"), (np.zeros((1, 12, 12)), "ndarray"), (torch.zeros(12, 12), r"\(12, 12\)")],
)
def test_a_stream_of_anything_but_images_is_refused(defense_for, model, images, item, got):
    with pytest.raises(ValueError, match=rf"each image as a tensor of shape \(C, H, W\), got {got}"):
        list(defense_for(model, images).stream(iter([item])))


@pytest.mark.parametrize("seed", [1.5, -1, 2**64, True, "1"])
def test_a_seed_that_is_no_key_is_refused_when_the_defense_is_made(model, seed):
    with pytest.raises(ValueError, match=r"a seed that is whole, from 0 up and below 2\*\*64, got "):
        ActiveDefense(model, seed=seed)


@pytest.mark.parametrize("seed", [2**64 - 1, np.int64(5)])
def test_every_key_is_a_seed(defense_for, model, images, seed):
    assert defense_for(model, images, seed=seed).smooth(images[:1]).converged.all()
