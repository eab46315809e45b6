"""The joint batch norm of one rank alone is torch's; on several it is tested in tests/nn/test_joint.py."""

import pytest
import torch
from torch.nn.functional import batch_norm

from fastdef.ops import joint_batch_norm


# One image, several segments, a shape that is not square.
@pytest.mark.parametrize("shape", [(1, 1, 3, 5, 5), (3, 2, 4, 5, 3), (2, 4, 1, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_on_one_rank_it_is_batch_norm_of_each_segment(shape, layout):
    segments, _, channels, *_ = shape
    x = (5 + 2 * torch.randn(shape).flatten(0, 1)).double().contiguous(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(segments, channels, dtype=torch.float64, requires_grad=True) for _ in range(2))

    out, mean, variance = joint_batch_norm(x, weight, bias, eps=1e-5)

    parts = zip(x.chunk(segments), weight, bias, strict=True)
    expected = torch.cat([batch_norm(part, None, None, w, b, training=True, eps=1e-5) for part, w, b in parts])
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=layout)
    values = x.detach().unflatten(0, (segments, -1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close((mean, variance), (values.mean(2), values.var(2)))
    probe = torch.randn_like(out)
    gradients = (torch.autograd.grad(value, (x, weight, bias), probe) for value in (out, expected))
    torch.testing.assert_close(*gradients)


def test_it_is_an_op_that_torch_finds_sound():
    x, weight = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(2, 3, requires_grad=True)

    torch.library.opcheck(torch.ops.fastdef.joint_batch_norm.default, (x, weight, torch.zeros(2, 3), 1e-5))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((3, 3, 5, 5), r"\(S \* B, C, H, W\) and \(S, C\)"),
        ((4, 2, 5, 5), "S, C"),
        ((2, 3, 1, 1), "more than one value"),
    ],
)
def test_what_does_not_fit_is_refused(shape, told):
    with pytest.raises(ValueError, match=told):
        joint_batch_norm(torch.zeros(shape), torch.ones(2, 3), torch.zeros(2, 3), eps=1e-5)
