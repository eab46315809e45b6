import pytest
import torch

from fastdef.attacks import RATIOS, adaptive_pgd, pgd
from fastdef.nn import build, convert_to_afa, convert_to_multi_bn, fusing_weights, parse_architecture

OPTIONS = {"eps": 8 / 255, "step": 2 / 255, "steps": 5}


@pytest.fixture(scope="module", params=["shared", "layerwise"])
def model(request):
    torch.manual_seed(0)
    network = convert_to_multi_bn(build(parse_architecture("wrn-10-1", in_channels=1)), 2)
    return convert_to_afa(network, placement=request.param).eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 1, 12, 12, generator=generator), torch.arange(6)


def attacked(model, batch, **options):
    return adaptive_pgd(model, *batch, generator=torch.Generator().manual_seed(1), **{**OPTIONS, **options})


def test_it_stays_in_the_ball_and_leaves_the_model_as_it_was(model, batch):
    before = {name: value.clone() for name, value in model.state_dict().items()}

    images = attacked(model, batch)

    assert (images - batch[0]).abs().max() <= 8 / 255 + 1e-6
    assert images.min() >= 0
    assert images.max() <= 1
    assert not images.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_weight_s_part_pushes_w0_to_the_clean_branch(model, batch):
    with torch.no_grad():
        by_ratio = [fusing_weights(model, attacked(model, batch, ratio=ratio))[1].mean() for ratio in (1e6, 1, 1e-6)]

    assert by_ratio[0] < by_ratio[1] <= by_ratio[2]


def test_without_the_weight_s_part_it_is_pgd(model, batch):
    generator = torch.Generator().manual_seed(1)

    assert torch.equal(attacked(model, batch, ratio=float("inf")), pgd(model, *batch, generator=generator, **OPTIONS))


def test_both_parts_weigh_the_same_where_nothing_else_is_said(model, batch):
    assert torch.equal(attacked(model, batch), attacked(model, batch, ratio=1.0))
    assert not torch.equal(attacked(model, batch), attacked(model, batch, ratio=1e-3))


def test_the_ratios_are_the_paper_s_seven():
    assert [round(ratio, 3) for ratio in RATIOS] == [10, 5, 2, 1, 0.5, 0.2, 0.1]


@pytest.mark.parametrize("wrong", [{"ratio": 0.0}, {"ratio": -1.0}, {"steps": 0}, {"eps": -1.0}])
def test_what_does_not_fit_is_refused(model, batch, wrong):
    with pytest.raises(ValueError, match="adaptive_pgd needs"):
        attacked(model, batch, **wrong)


def test_a_model_without_a_fusing_weight_is_refused(batch):
    with pytest.raises(ValueError, match="made by convert_to_afa"):
        attacked(build(parse_architecture("wrn-10-1", in_channels=1)), batch)
