"""Runs under TRITON_INTERPRET=1, in a process of its own: see ../test_interpreted.py."""

import pytest
import torch

from fastdef.kernels import afa_fuse, configurations, reference

# Fewer channels than any tile, powers of two and not, a channel count above a tile's row; odd planes and one pixel.
SHAPES = [(3, 3, 7, 7), (2, 16, 5, 3), (2, 48, 8, 8), (1, 160, 16, 16), (2, 1040, 1, 1), (1, 3, 40, 40)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
cases = pytest.mark.parametrize(
    ("shape", "dtype", "layout", "relu"),
    [(s, d, m, r) for s in SHAPES for d in DTYPES for m in LAYOUTS for r in (False, True)],
)


def arguments(shape, dtype, layout):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    return x, grad, torch.tensor([0.3, 1.0, 0.0])[: shape[0]], [norm(shape[1], generator, eps) for eps in (0.3, 0.0)]


def norm(channels, generator, eps):
    mean, weight, bias = torch.randn(3, channels, generator=generator)
    return reference.Norm(mean, torch.rand(channels, generator=generator) + 0.5, weight, bias, eps)


@cases
def test_forward_matches_reference_and_keeps_the_layout(shape, dtype, layout, relu):
    x, _, w0, norms = arguments(shape, dtype, layout)

    out = afa_fuse.forward(x, w0, *norms, relu=relu)

    torch.testing.assert_close(out, reference.afa_fuse(x, w0, *norms, relu=relu))
    assert out.is_contiguous(memory_format=layout)


@cases
def test_backward_matches_reference_and_keeps_the_layout(shape, dtype, layout, relu):
    x, grad, w0, norms = arguments(shape, dtype, layout)

    dx, dw0 = afa_fuse.backward(grad, x, w0, *norms, relu=relu)

    expected = reference.afa_fuse_backward(grad, x, w0, *norms, relu=relu)
    torch.testing.assert_close(dx, expected[0])
    assert dx.is_contiguous(memory_format=layout)
    torch.testing.assert_close(dw0, expected[1], rtol=1e-4, atol=1e-3)  # thousands of terms of both signs


# Not bfloat16, which the interpreter rounds towards zero.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("relu", [False, True])
def test_a_weight_of_one_or_zero_is_one_branch_to_the_bit(dtype, relu):
    x, _, _, norms = arguments((2, 16, 7, 5), dtype, torch.contiguous_format)

    out = afa_fuse.forward(x, torch.tensor([1.0, 0.0]), *norms, relu=relu)

    halves = torch.full((2,), 0.5)  # of equals: they add up exactly
    alone = [afa_fuse.forward(x, halves, branch, branch, relu=relu) for branch in norms]
    assert torch.equal(out, torch.stack([alone[0][0], alone[1][1]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_batch_norms_of_another_type_than_the_features_are_taken(dtype):
    x, grad, w0, norms = arguments((2, 16, 5, 3), torch.float32, torch.contiguous_format)
    norms = [reference.Norm(*(value.to(dtype) for value in branch[:4]), branch.eps) for branch in norms]

    out = afa_fuse.forward(x, w0, *norms, relu=True), *afa_fuse.backward(grad, x, w0, *norms, relu=True)

    expected = reference.afa_fuse_backward(grad, x, w0, *norms, relu=True)
    torch.testing.assert_close(out[:2], (reference.afa_fuse(x, w0, *norms, relu=True), expected[0]))
    torch.testing.assert_close(out[2], expected[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_do_not_meet(layout):
    x, grad, w0, norms = arguments((3, 20, 9, 9), torch.float32, layout)

    together = afa_fuse.forward(x, w0, *norms, relu=True), *afa_fuse.backward(grad, x, w0, *norms, relu=True)

    for n in range(3):
        one = x[n : n + 1].clone(memory_format=layout), w0[n : n + 1], *norms
        alone = (
            afa_fuse.forward(*one, relu=True),
            *afa_fuse.backward(grad[n : n + 1].clone(memory_format=layout), *one, relu=True),
        )
        assert all(torch.equal(a[n : n + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_a_number_survives_the_relu(layout):
    x, _, w0, norms = arguments((2, 16, 5, 3), torch.float32, layout)
    x[1, 3, 2, 1] = float("nan")

    out = afa_fuse.forward(x, w0, *norms, relu=True)

    assert out.isnan().nonzero().tolist() == [[1, 3, 2, 1]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("candidate", configurations.CANDIDATES["afa_fuse"][::3])
def test_a_shape_on_the_list_is_launched_as_it_says_and_answered_alike(monkeypatch, layout, candidate):
    x, grad, w0, norms = arguments((2, 48, 24, 24), torch.float32, layout)
    expected = afa_fuse.backward(grad, x, w0, *norms, relu=True)
    monkeypatch.setitem(configurations.AFA_FUSE, (48, 576, torch.float32), candidate)

    shape, _ = afa_fuse._launch(x)

    assert shape["num_warps"] == candidate.warps
    assert shape["BLOCK_B"] <= candidate.longest_row
    torch.testing.assert_close(afa_fuse.backward(grad, x, w0, *norms, relu=True), expected)
