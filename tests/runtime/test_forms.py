import pytest
import torch
from torch import nn

from fastdef.defense import ActiveDefense
from fastdef.runtime.forms import write_out

aten = torch.ops.aten
LAYERS = {
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "avg_pool": nn.AvgPool2d(2),
    "avg_pool, overlapping": nn.AvgPool2d((3, 2), stride=(2, 1), padding=(1, 0)),
    "avg_pool, padding not counted": nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "avg_pool, ceil": nn.AvgPool2d(3, stride=2, ceil_mode=True),
    "avg_pool, divisor": nn.AvgPool2d(3, padding=1, divisor_override=5),
    "adaptive": nn.AdaptiveAvgPool2d((3, 5)),
    "upsampled": nn.Upsample(scale_factor=2, mode="bilinear"),
    "upsampled, corners kept": nn.Upsample(size=(9, 30), mode="bilinear", align_corners=True),
    "upsampled, bicubic": nn.Upsample(scale_factor=(1.5, 2.0), mode="bicubic"),
    "repeated": nn.Upsample(scale_factor=(2.0, 1.3)),
    "repeated, exact": nn.Upsample(size=(17, 9), mode="nearest-exact"),
    "one after another": nn.Sequential(nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.SiLU(), nn.AvgPool2d(2)),
    "adaptive, rectangular": nn.AdaptiveAvgPool2d((1, 4)),
}


class Network(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), layer, nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.stem(images).mean((2, 3)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 12, 12), (1, 11, 14)], ids=str)
def test_what_is_written_out_is_what_stood_there(name, shape):
    torch.manual_seed(0)
    defense = ActiveDefense(Network(LAYERS[name]).double().eval(), "stem", compile=False)
    images = torch.rand(3, *shape, dtype=torch.float64)
    traced = defense._steps.step(images).step
    expected = traced(images)
    before = {node.target for node in traced.graph.graph.nodes}

    write_out(traced.graph, images)

    torch.testing.assert_close(traced(images), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(traced(images[:2]), (expected[0][:2], expected[1][:2]), rtol=1e-12, atol=1e-12)
    foreign = {target for target in before if "backward" in str(target)}
    assert foreign
    assert not foreign & {node.target for node in traced.graph.graph.nodes}
