"""Runs under TRITON_INTERPRET=1, in a process of its own: see ../test_interpreted.py."""

import pytest
import torch

from fastdef.kernels import configurations, reference, smoothing

# One element, an odd count, a block, a block and one, a sample split over programs with an odd end.
SHAPES = [(1, 1), (2, 105), (3, 4096), (2, 4097), (1, 5 * 4096 + 77)]
CASES = [(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.float16, torch.bfloat16)]


def features(shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_forward_matches_reference(shape, dtype):
    f = features(shape, dtype)

    loss, mean, tilt = smoothing.forward(f)

    expected = reference.smoothing(f)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean, expected[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tilt, expected[2], rtol=1e-4, atol=4 / f.shape[1])  # a sign may flip at the mean


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_backward_matches_reference(shape, dtype):
    f = features(shape, dtype)
    _, mean, tilt = reference.smoothing(f)
    grad = torch.randn(shape[0], generator=torch.Generator().manual_seed(1))

    out = smoothing.backward(grad, f, mean, tilt)

    assert out.dtype == dtype
    torch.testing.assert_close(out, reference.smoothing_backward(grad, f, mean, tilt))


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_loss_and_field_in_one_call_match_the_separate_ones(shape, dtype):
    f = features(shape, dtype)

    loss, field = smoothing.forward_with_field(f)

    alone, mean, tilt = smoothing.forward(f)
    expected = smoothing.backward(torch.full_like(alone, float(shape[1])), f, mean, tilt)
    assert torch.equal(loss, alone)
    torch.testing.assert_close(field, expected)


# 0.1 is none of the sums' values: the mean misses it by a rounding, and every sign is the same.
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_constant_features_have_no_loss_and_no_field(value, dtype):
    f = torch.full((2, 5000), value, dtype=dtype)

    loss, field = smoothing.forward_with_field(f)

    torch.testing.assert_close(loss, torch.zeros(2), rtol=0, atol=1e-7)
    assert torch.equal(field, torch.zeros_like(f))


def test_values_at_the_mean_have_sign_zero():
    f = torch.tensor([[-1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0 - 2.0]])

    _, field = smoothing.forward_with_field(f)

    assert torch.equal(field, torch.tensor([[-1.0, 0, 0, 1], [1, 0, 0, -1]]))


def test_every_value_of_the_output_is_written():
    f = features((3, 4097), torch.float32)
    out = torch.full_like(f, float("nan"))
    n, m = f.shape
    parts, span, how = smoothing._launch(f)
    _, mean, tilt = reference.smoothing(f)

    smoothing._field_kernel[(n, parts)](f, mean, tilt, mean, out, m, span, SCALED=False, **how)

    assert torch.isfinite(out).all()


@pytest.mark.parametrize("candidate", configurations.CANDIDATES["smoothing"][::4])
def test_a_shape_on_the_list_is_launched_as_it_says_and_answered_alike(monkeypatch, candidate):
    f = features((2, 9000), torch.float32)
    expected = smoothing.forward_with_field(f)
    monkeypatch.setitem(configurations.SMOOTHING, (9000, torch.float32), candidate)

    assert smoothing._launch(f)[2] == {"BLOCK": candidate.block, "num_warps": candidate.warps}
    torch.testing.assert_close(smoothing.forward_with_field(f), expected)
