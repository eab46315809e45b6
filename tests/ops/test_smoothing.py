import pytest
import torch

from fastdef.kernels import reference
from fastdef.ops import smoothing_loss, smoothing_loss_and_field
from fastdef.ops.smoothing import _smoothing, _smoothing_backward, _smoothing_field

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def features(shape=(2, 3, 5, 4), dtype=torch.float32, layout=torch.contiguous_format):
    f = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return f.contiguous(memory_format=layout) if len(shape) == 4 else f


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 5, 4)])
def test_loss_is_the_paper_s_equation(shape, dtype):
    f = features(shape, dtype)

    loss = smoothing_loss(f)

    exact = f.double().flatten(1)
    expected = (exact - exact.mean(1, keepdim=True)).abs().mean(1)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-7)


def test_gradient_is_that_of_the_loss():
    f = features(dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(smoothing_loss, (f,))


def test_ties_with_the_mean_have_sign_zero():
    f = torch.tensor([[-1.0, 0.0, 0.0, 1.0]], requires_grad=True)

    smoothing_loss(f).sum().backward()

    assert torch.equal(f.grad, torch.tensor([[-0.25, 0.0, 0.0, 0.25]]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_field_over_m_is_the_gradient_and_lies_as_the_features(layout):
    f = features(layout=layout).requires_grad_()
    smoothing_loss(f).sum().backward()

    loss, field = smoothing_loss_and_field(f.detach())

    torch.testing.assert_close(loss, smoothing_loss(f.detach()))
    torch.testing.assert_close(field / f[0].numel(), f.grad)
    assert field.stride() == f.grad.stride() == f.stride()


# Any order inside a sample is dense; a slice of each sample is not, and then results are contiguous.
@pytest.mark.parametrize(("order", "dense"), [((0, 3, 1, 2), True), ((0, 2, 1, 3), True), ((1, 0, 2, 3), False)])
def test_results_lie_as_dense_features_do_in_eager_mode_and_compiled(order, dense):
    inverse = [order.index(dim) for dim in range(4)]
    f = torch.randn([(2, 3, 5, 4)[dim] for dim in order]).permute(inverse)
    compiled = torch.compile(smoothing_loss_and_field, fullgraph=True, backend="aot_eager")

    loss, field = smoothing_loss_and_field(f)

    assert field.stride() == compiled(f)[1].stride() == (f.stride() if dense else f.contiguous().stride())
    torch.testing.assert_close((loss, field), smoothing_loss_and_field(f.contiguous()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_once_for_all_sizes(layout):
    compiled = torch.compile(smoothing_loss_and_field, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.mark_dynamic(small := features(layout=layout), (0, 1, 2, 3))
    compiled(small)

    with torch.compiler.set_stance("fail_on_recompile"):
        result = compiled(other := features((3, 6, 7, 8), layout=layout))

    torch.testing.assert_close(result, smoothing_loss_and_field(other))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operations_pass_torch_s_own_checks(layout):
    f = features(layout=layout)
    _, mean, tilt = reference.smoothing(f)

    torch.library.opcheck(_smoothing, (f.requires_grad_(),))
    torch.library.opcheck(_smoothing_field, (f.detach(),))
    torch.library.opcheck(_smoothing_backward, (torch.rand(2), f.detach(), mean, tilt))


def test_compiles_as_one_graph_forward_and_backward():
    f = features().requires_grad_()
    compiled = torch.compile(lambda f: smoothing_loss(f * 2).sum(), fullgraph=True, backend="aot_eager")

    compiled(f).backward()

    compiled_gradient, f.grad = f.grad, None
    smoothing_loss(f * 2).sum().backward()
    torch.testing.assert_close(compiled_gradient, f.grad)


def test_exports():
    class Loss(torch.nn.Module):
        def forward(self, f):
            return smoothing_loss(f)

    program = torch.export.export(Loss(), (features(),), dynamic_shapes=({0: torch.export.Dim("n")},))

    torch.testing.assert_close(program.module()(features((5, 3, 5, 4))), smoothing_loss(features((5, 3, 5, 4))))


@pytest.mark.parametrize("operation", [smoothing_loss, smoothing_loss_and_field])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4), r"\(N, ...\) features, got shape \(4,\)"),
        (torch.zeros(0, 3), r"got shape \(0, 3\)"),
        (torch.zeros(2, 0), r"got shape \(2, 0\)"),
        (torch.zeros(2, 3, dtype=torch.int32), "float dtype, got torch.int32"),
    ],
)
def test_bad_features_are_refused(operation, bad, message):
    with pytest.raises(ValueError, match=message):
        operation(bad)


def test_a_gradient_that_would_be_lost_is_refused():
    with pytest.raises(ValueError, match="without a gradient"):
        smoothing_loss_and_field(features().requires_grad_())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 7), (2, 160, 32, 32), (300, 16, 28, 28)])
def test_cuda_equals_the_reference(shape, layout, dtype):
    f = features(shape, dtype, layout).cuda().requires_grad_()

    loss = smoothing_loss(f)
    loss.sum().backward()
    again, field = smoothing_loss_and_field(f.detach())

    expected, _, _ = reference.smoothing(f.detach())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(loss, again)
    assert f.grad.stride() == field.stride() == f.stride()
    _, measured_mean, _ = _smoothing(f.detach())
    decided = (f.detach() - measured_mean.view(-1, 1, 1, 1)).abs() > 1e-5  # away from ties
    want = reference.smoothing_field(f.detach())[1]
    torch.testing.assert_close(field[decided], want[decided], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_cuda_finds_no_field_in_constant_features(value):
    f = torch.full((3, 5, 29, 31), value, device="cuda")

    _, field = smoothing_loss_and_field(f)

    assert torch.equal(field, torch.zeros_like(f))


@pytest.mark.gpu
def test_cuda_launches_where_the_features_are():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    f = features().to("cuda:1").requires_grad_()

    smoothing_loss(f).sum().backward()

    torch.testing.assert_close(f.grad.cpu() * f[0].numel(), smoothing_loss_and_field(f.detach().cpu())[1])


@pytest.mark.gpu
def test_cuda_gives_the_same_bits_twice_and_in_a_graph():
    f = features((8, 160, 32, 32), torch.bfloat16).cuda()
    first, field = smoothing_loss_and_field(f)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, captured_field = smoothing_loss_and_field(f)
    graph.replay()
    torch.cuda.synchronize()

    assert torch.equal(first, captured)
    assert torch.equal(field, captured_field)


@pytest.mark.gpu
def test_cuda_compiles_as_one_graph():
    f = features((4, 16, 8, 8)).cuda().requires_grad_()

    torch.compile(lambda f: smoothing_loss(f * 2).sum(), fullgraph=True)(f).backward()

    compiled_gradient, f.grad = f.grad, None
    smoothing_loss(f * 2).sum().backward()
    torch.testing.assert_close(compiled_gradient, f.grad)


def test_of_skewed_features_the_gradient_has_the_mean_of_the_signs():
    """A few large values above many small ones: mean sign(F - m) is far from 0, and the gradient is autograd's."""
    f = torch.rand((3, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f[:, :4] += 20
    f.requires_grad_()
    (expected,) = torch.autograd.grad((f - f.mean(1, keepdim=True)).abs().mean(1).sum(), f)

    loss, mean, tilt = reference.smoothing(f.detach())

    assert bool((tilt.abs() > 0.5).all())
    torch.testing.assert_close(reference.smoothing_backward(torch.ones_like(loss), f.detach(), mean, tilt), expected)
    torch.testing.assert_close(reference.smoothing_field(f.detach())[1] / 40, expected)
    torch.testing.assert_close(expected.sum(1), torch.zeros(3, dtype=torch.float64))  # a shift of F changes no loss
