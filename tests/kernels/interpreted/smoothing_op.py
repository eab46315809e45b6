"""The operation as a GPU would run it. Runs under TRITON_INTERPRET=1, in a process of its own: ../test_interpreted.py.

What is registered for CUDA is registered for the CPU too, so that the dispatcher takes it here: its checks of the
outputs, the layouts, and the way between features and the launchers' (N, M).
"""

from itertools import product

import pytest
import torch

from fastdef.kernels import reference
from fastdef.ops import smoothing as operation

operation._smoothing.register_kernel("cpu")(operation._smoothing_on_gpu)
operation._smoothing_backward.register_kernel("cpu")(operation._backward_on_gpu)
operation._smoothing_field.register_kernel("cpu")(operation._field_on_gpu)

LAYOUTS = {
    "contiguous": lambda f: f.contiguous(),
    "channels_last": lambda f: f.contiguous(memory_format=torch.channels_last),
    "reversed": lambda f: f.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1),
    "holes": lambda f: torch.stack([f, f], dim=-1)[..., 0],
    "samples apart": lambda f: f.repeat_interleave(2, dim=0)[::2],
}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SMALL = [(2, 3, 5, 4), (2, 3, 1, 4), (1, 1, 1, 1), (9, 3, 5, 4)]
LARGE = [(3, 6, 30, 29), (5, 20, 30, 29)]
# some dimensions of one, more samples than multiprocessors, which are taken whole; then a sample of two blocks
CASES = [*product(SMALL, LAYOUTS, DTYPES), *product(LARGE, ("channels_last", "holes"), (torch.float32, torch.bfloat16))]


def features(shape, dtype, layout):
    return LAYOUTS[layout](torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """The launchers called, by name: proof that the kernels ran, and not the reference."""
    from fastdef.kernels import smoothing

    names = []
    for name in ("forward", "backward", "forward_with_field"):
        launch = getattr(smoothing, name)
        monkeypatch.setattr(smoothing, name, lambda *a, name=name, launch=launch: [names.append(name), launch(*a)][1])
    return names


@pytest.mark.parametrize(("shape", "layout", "dtype"), CASES)
def test_loss_gradient_and_field_are_the_reference_s(shape, layout, dtype, launched):
    f = features(shape, dtype, layout).requires_grad_()

    loss = operation.smoothing_loss(f)
    loss.sum().backward()
    again, field = operation.smoothing_loss_and_field(f.detach())

    expected, expected_mean, tilt = reference.smoothing(f.detach())
    expected_gradient = reference.smoothing_backward(torch.ones_like(expected), f.detach(), expected_mean, tilt)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(loss, again)
    torch.testing.assert_close(f.grad, expected_gradient)
    torch.testing.assert_close(field, reference.smoothing_field(f.detach())[1])
    kernels = [] if dtype == torch.float64 else ["forward", "backward", "forward_with_field"]
    assert sorted(set(launched)) == sorted(kernels)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "reversed"])
def test_dense_samples_are_read_and_answered_where_they_lie(layout):
    f = features((2, 3, 5, 4), torch.float32, layout)

    assert operation._flat(f).data_ptr() == f.data_ptr()
    assert operation.smoothing_loss_and_field(f)[1].stride() == f.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SMALL[:2])
def test_operations_pass_torch_s_own_checks(layout, shape):
    f = features(shape, torch.float32, layout)
    _, mean, tilt = reference.smoothing(f)

    torch.library.opcheck(operation._smoothing, (f.detach().requires_grad_(),))
    torch.library.opcheck(operation._smoothing_field, (f,))
    torch.library.opcheck(operation._smoothing_backward, (torch.rand(2), f, mean, tilt))
