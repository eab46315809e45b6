import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fastdef.kernels import reference
from fastdef.ops import Norm, afa_fuse

OPERATION = torch.ops.fastdef.afa_fuse.default
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def norm(c, generator, eps):
    mean, weight, bias = torch.randn(3, c, generator=generator)
    return Norm(mean, torch.rand(c, generator=generator) + 0.5, weight, bias, eps)


def arguments(n=3, c=5, h=4, w=3, dtype=torch.float32, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, generator=generator).to(dtype).contiguous(memory_format=layout).requires_grad_()
    w0 = torch.rand(n, generator=generator).requires_grad_()
    return x, w0, norm(c, generator, 0.3), norm(c, generator, 1e-5)


def flat(norm0, norm1):
    """As the operation below has them."""
    return *norm0[:4], *norm1[:4], norm0.eps, norm1.eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
def test_it_and_its_gradients_are_those_of_torch_s_own_two_batch_norms(relu, dtype):
    norms = [nn.BatchNorm2d(5, eps=eps).eval().to(dtype).requires_grad_(False) for eps in (0.37, 0.0021)]
    for module in norms:
        for value in (module.weight, module.bias, module.running_mean, module.running_var):
            value.uniform_(0.1, 1.5)
    x, w0 = (value.detach().to(dtype).requires_grad_() for value in arguments(dtype=dtype)[:2])
    grad = torch.randn_like(x)

    out = afa_fuse(x, w0, *map(Norm.of, norms), relu=relu)

    weight = w0[:, None, None, None]
    expected = weight * norms[0](x) + (1 - weight) * norms[1](x)
    expected = expected.relu() if relu else expected
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-13, "rtol": 1e-13}
    torch.testing.assert_close(out, expected, **close)
    found = torch.autograd.grad(out, (x, w0), grad)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (x, w0), grad), **close)


def test_a_batch_norm_without_affine_or_statistics_is_refused():
    for module in (nn.BatchNorm2d(5, affine=False), nn.BatchNorm2d(5, track_running_stats=False)):
        with pytest.raises(ValueError, match="affine and running statistics, got BatchNorm2d"):
            Norm.of(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_of_one_or_zero_is_one_branch_to_the_bit(dtype):
    x, _, *norms = arguments(dtype=dtype)

    for w0, branch in zip((torch.ones(3), torch.zeros(3)), norms, strict=True):
        alone = afa_fuse(x, torch.full((3,), 0.5), branch, branch)  # halves of equals add up exactly
        assert torch.equal(afa_fuse(x, w0, *norms), alone)


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_are_those_of_finite_differences(relu):
    x, w0, *norms = arguments(n=2, c=2, h=2, w=2)
    x, w0 = x.detach().double(), w0.detach().double()

    def fuse(x, w0):
        return reference.afa_fuse(x, w0, *norms, relu=relu)

    assert torch.autograd.gradcheck(fuse, (x.requires_grad_(), w0.requires_grad_()))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_registered_gradient_is_that_of_the_plain_line(relu, dtype, layout):
    x, w0, *norms = arguments(dtype=dtype, layout=layout)
    plain = reference.afa_fuse(x, w0, *norms, relu=relu)
    grad = torch.randn_like(plain)

    out = OPERATION(x, w0, *flat(*norms), relu)

    assert torch.equal(out, plain)
    assert out.is_contiguous(memory_format=layout)
    dx, dw0 = torch.autograd.grad(out, (x, w0), grad)
    expected = torch.autograd.grad(plain, (x, w0), grad)
    torch.testing.assert_close(dx, expected[0])
    torch.testing.assert_close(dw0, expected[1], rtol=1e-4, atol=1e-4)  # a sum of terms of both signs


# A slice and a gradient that broadcasts lie in neither layout.
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operation_is_registered_rightly(layout):
    x, w0, *norms = arguments(layout=layout)

    torch.library.opcheck(OPERATION, (x, w0, *flat(*norms), True))
    torch.library.opcheck(OPERATION, (x.detach()[:, :, ::2].requires_grad_(), w0, *flat(*norms), False))


def test_a_gradient_that_broadcasts_is_taken():
    x, w0, *norms = arguments()

    found = torch.autograd.grad(OPERATION(x, w0, *flat(*norms), True).sum(), (x, w0))

    torch.testing.assert_close(found, torch.autograd.grad(afa_fuse(x, w0, *norms, relu=True).sum(), (x, w0)))


def operation(x, w0, *norms, relu):
    return OPERATION(x, w0, *flat(*norms), relu)


@pytest.mark.parametrize("function", [afa_fuse, operation])
def test_it_compiles_into_one_graph_with_its_gradient(function):
    x, w0, *norms = arguments()

    def loss(x, w0):
        return function(x, w0, *norms, relu=True).square().sum()

    compiled = torch.compile(loss, fullgraph=True)

    torch.testing.assert_close(compiled(x, w0), loss(x, w0))
    found = torch.autograd.grad(compiled(x, w0), (x, w0))
    torch.testing.assert_close(found, torch.autograd.grad(loss(x, w0), (x, w0)))


def test_a_tracer_sees_plain_torch():
    x, w0, *norms = arguments()

    graph = make_fx(lambda x, w0: F.relu(afa_fuse(x, w0, *norms)))(x, w0)

    assert {node.target.namespace for node in graph.graph.nodes if node.op == "call_function"} == {"aten"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5)}, r"\(N, C, H, W\) float features, got \(3, 5\)"),
        ({"x": torch.zeros(3, 5, 0, 4)}, r"float features, got \(3, 5, 0, 4\)"),
        ({"x": torch.zeros(3, 5, 1, 1, dtype=torch.int64)}, "float features, got .* torch.int64"),
        ({"w0": torch.zeros(2)}, r"one float W0 a sample, \(3,\), got \(2,\)"),
        ({"w0": torch.zeros(3, 1)}, r"one float W0 a sample, \(3,\), got \(3, 1\)"),
        ({"norm0": arguments(c=4)[2]}, r"norm0.mean as \(5,\) floats, got \(4,\) torch.float32"),
        ({"norm1": arguments()[3]._replace(var=torch.ones(1, 5))}, r"norm1.var as \(5,\) floats, got \(1, 5\)"),
        ({"norm1": arguments()[3]._replace(weight=torch.ones(5).int())}, "norm1.weight as .* got .* torch.int32"),
        (
            {"norm0": arguments()[2]._replace(bias=torch.zeros(5, requires_grad=True))},
            "differentiates in x and w0 alone, got a norm0.bias",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    given = dict(zip(("x", "w0", "norm0", "norm1"), arguments(), strict=True)) | change

    with pytest.raises(ValueError, match=message):
        afa_fuse(**given)


@pytest.mark.gpu
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 3, 7, 7), (2, 16, 5, 3), (8, 160, 32, 32), (8, 640, 8, 8)])
def test_on_a_gpu_the_kernels_match_the_reference(relu, dtype, layout, shape):
    x, w0, *norms = arguments(*shape, dtype=dtype, layout=layout)
    x, w0 = x.detach().cuda().requires_grad_(), w0.detach().cuda().requires_grad_()
    norms = [Norm(*(value.cuda() for value in given[:4]), given.eps) for given in norms]
    grad = torch.randn(shape, device="cuda").to(dtype)  # contiguous, whatever the features are
    grad[reference.afa_fuse(x.float(), w0, *norms, relu=False).abs() < 1e-5] = 0  # there a rounding makes the mask

    out = afa_fuse(x, w0, *norms, relu=relu)
    expected = reference.afa_fuse(x, w0, *norms, relu=relu)

    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=layout)
    dx, dw0 = torch.autograd.grad(out, (x, w0), grad)
    plain = reference.afa_fuse_backward(grad, x, w0, *norms, relu=relu)
    torch.testing.assert_close(dx, plain[0])
    torch.testing.assert_close(dw0, plain[1], rtol=1e-3, atol=1e-3 * x[0].numel() ** 0.5)
