import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fastdef.kernels import reference
from fastdef.ops import afa_fuse

OPERATION = torch.ops.fastdef.afa_fuse.default
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def arguments(n=3, c=5, h=4, w=3, dtype=torch.float32, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, generator=generator).to(dtype).contiguous(memory_format=layout).requires_grad_()
    w0 = torch.rand(n, generator=generator).requires_grad_()
    return x, w0, *(torch.randn(c, generator=generator) for _ in range(4))


def folded(norm):
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()


@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_weighted_sum_of_two_batch_norms(relu):
    norms = [nn.BatchNorm2d(5).eval() for _ in range(2)]
    for norm in norms:
        for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            value.uniform_(0.5, 1.5)
    x, w0, *_ = arguments()

    out = afa_fuse(x, w0, *folded(norms[0]), *folded(norms[1]), relu=relu)

    weight = w0[:, None, None, None]
    expected = weight * norms[0](x) + (1 - weight) * norms[1](x)
    torch.testing.assert_close(out, expected.relu() if relu else expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_of_one_or_zero_is_one_branch_to_the_bit(dtype):
    x, _, scale0, shift0, scale1, shift1 = arguments(dtype=dtype)

    for w0, scale, shift in ((torch.ones(3), scale0, shift0), (torch.zeros(3), scale1, shift1)):
        alone = afa_fuse(x, torch.full((3,), 0.5), scale, shift, scale, shift)  # halves of equals add up exactly
        assert torch.equal(afa_fuse(x, w0, scale0, shift0, scale1, shift1), alone)


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_finite_differences(relu):
    x, w0, *affines = (value.detach().double() for value in arguments(n=2, c=2, h=2, w=2))

    def fuse(x, w0):
        return reference.afa_fuse(x, w0, *affines, relu=relu)

    assert torch.autograd.gradcheck(fuse, (x.requires_grad_(), w0.requires_grad_()))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_registered_gradient_is_that_of_the_plain_line(relu, dtype, layout):
    x, w0, *affines = arguments(dtype=dtype, layout=layout)
    plain = reference.afa_fuse(x, w0, *affines, relu=relu)
    grad = torch.randn_like(plain)

    out = OPERATION(x, w0, *affines, relu)

    assert torch.equal(out, plain)
    assert out.is_contiguous(memory_format=layout)
    dx, dw0 = torch.autograd.grad(out, (x, w0), grad)
    expected = torch.autograd.grad(plain, (x, w0), grad)
    torch.testing.assert_close(dx, expected[0])
    torch.testing.assert_close(dw0, expected[1], rtol=1e-4, atol=1e-4)  # a sum of terms of both signs


# A slice and a gradient that broadcasts lie in neither layout.
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operation_is_registered_rightly(layout):
    x, w0, *affines = arguments(layout=layout)

    torch.library.opcheck(OPERATION, (x, w0, *affines, True))
    torch.library.opcheck(OPERATION, (x.detach()[:, :, ::2].requires_grad_(), w0, *affines, False))


def test_a_gradient_that_broadcasts_is_taken():
    x, w0, *affines = arguments()

    found = torch.autograd.grad(OPERATION(x, w0, *affines, True).sum(), (x, w0))

    torch.testing.assert_close(found, torch.autograd.grad(afa_fuse(x, w0, *affines, relu=True).sum(), (x, w0)))


@pytest.mark.parametrize("function", [afa_fuse, lambda *a, relu: OPERATION(*a, relu)], ids=["afa_fuse", "operation"])
def test_it_compiles_into_one_graph_with_its_gradient(function):
    x, w0, *affines = arguments()

    def loss(x, w0):
        return function(x, w0, *affines, relu=True).square().sum()

    compiled = torch.compile(loss, fullgraph=True)

    torch.testing.assert_close(compiled(x, w0), loss(x, w0))
    found = torch.autograd.grad(compiled(x, w0), (x, w0))
    torch.testing.assert_close(found, torch.autograd.grad(loss(x, w0), (x, w0)))


def test_a_tracer_sees_plain_torch():
    x, w0, *affines = arguments()

    graph = make_fx(lambda x, w0: F.relu(afa_fuse(x, w0, *affines)))(x, w0)

    assert {node.target.namespace for node in graph.graph.nodes if node.op == "call_function"} == {"aten"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5)}, r"\(N, C, H, W\) float features, got \(3, 5\)"),
        ({"x": torch.zeros(3, 5, 0, 4)}, r"float features, got \(3, 5, 0, 4\)"),
        ({"x": torch.zeros(3, 5, 1, 1, dtype=torch.int64)}, "float features, got .* torch.int64"),
        ({"w0": torch.zeros(2)}, r"one float W0 a sample, \(3,\), got \(2,\)"),
        ({"w0": torch.zeros(3, 1)}, r"one float W0 a sample, \(3,\), got \(3, 1\)"),
        ({"scale0": torch.zeros(4)}, r"scale0 as \(5,\) float32, got \(4,\)"),
        ({"shift1": torch.zeros(5).half()}, r"shift1 as \(5,\) float32, got \(5,\) torch.float16"),
        ({"shift0": torch.zeros(5, requires_grad=True)}, "differentiates in x and w0 alone, got shift0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    names = ("x", "w0", "scale0", "shift0", "scale1", "shift1")
    given = dict(zip(names, arguments(), strict=True)) | change

    with pytest.raises(ValueError, match=message):
        afa_fuse(**given)


@pytest.mark.gpu
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 3, 7, 7), (2, 16, 5, 3), (8, 160, 32, 32), (8, 640, 8, 8)])
def test_on_a_gpu_the_kernels_match_the_reference(relu, dtype, layout, shape):
    x, w0, *affines = (value.detach().cuda() for value in arguments(*shape, dtype=dtype, layout=layout))
    x, w0 = x.requires_grad_(), w0.requires_grad_()
    grad = torch.randn(shape, device="cuda").to(dtype)  # contiguous, whatever the features are

    out = afa_fuse(x, w0, *affines, relu=relu)
    expected = reference.afa_fuse(x, w0, *affines, relu=relu)

    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=layout)
    dx, dw0 = torch.autograd.grad(out, (x, w0), grad)
    plain = reference.afa_fuse_backward(grad, x, w0, *affines, relu=relu)
    torch.testing.assert_close(dx, plain[0])
    torch.testing.assert_close(dw0, plain[1], rtol=1e-3, atol=1e-3 * x[0].numel() ** 0.5)
