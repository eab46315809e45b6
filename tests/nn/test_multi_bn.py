import pytest
import torch
from torch import nn

from fastdef.nn import MultiBatchNorm2d, set_branch


def separate(branches, channels, **options):
    """K plain batch norms that differ in everything."""
    plain = [nn.BatchNorm2d(channels, **options) for _ in range(branches)]
    for norm in plain:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return plain


def stacked(plain, **options):
    multi = MultiBatchNorm2d(plain[0].num_features, len(plain), **options)
    multi.load_state_dict({key: torch.stack([p.state_dict()[key] for p in plain]) for key in plain[0].state_dict()})
    set_branch(multi, None)
    return multi


def all_active(branches):
    multi = MultiBatchNorm2d(3, branches)
    set_branch(multi, None)
    return multi


def assert_same_state(multi, plain):
    for key, value in multi.state_dict().items():
        assert torch.equal(value, torch.stack([p.state_dict()[key] for p in plain])), key


# One branch, the paper's five; momentum None is torch's average over all batches.
@pytest.mark.parametrize("branches", [1, 5])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_training_on_segments_equals_separate_batch_norms_to_the_bit(branches, momentum, layout):
    plain = separate(branches, 3, momentum=momentum)
    multi = stacked(plain, momentum=momentum)

    for _ in range(2):  # running statistics of a second batch depend on those of the first
        x = torch.randn(branches * 4, 3, 5, 7).contiguous(memory_format=layout).requires_grad_()
        grad = torch.randn_like(x)
        out = multi(x)
        expected = torch.cat([norm(part) for norm, part in zip(plain, x.chunk(branches), strict=True)])
        gradients = torch.autograd.grad(out, (x, multi.weight, multi.bias), grad)
        dx, *rest = torch.autograd.grad(expected, (x, *(p.weight for p in plain), *(p.bias for p in plain)), grad)

        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=layout)
        assert torch.equal(gradients[0], dx)
        assert torch.equal(gradients[1], torch.stack(rest[:branches]))
        assert torch.equal(gradients[2], torch.stack(rest[branches:]))
        assert_same_state(multi, plain)


def test_eval_mode_uses_the_running_statistics_of_each_segment_and_moves_none():
    plain = [norm.eval() for norm in separate(3, 4)]
    multi = stacked(plain).eval()
    x = torch.randn(6, 4, 3, 3)

    out = multi(x)

    assert torch.equal(out, torch.cat([norm(part) for norm, part in zip(plain, x.chunk(3), strict=True)]))
    assert_same_state(multi, plain)


def test_the_active_branches_alone_see_and_move():
    plain = separate(5, 2)
    multi = stacked(plain)
    multi.active = (1, 2, 3, 4)
    x = torch.randn(8, 2, 3, 3)

    out = multi(x)

    assert torch.equal(out, torch.cat([norm(part) for norm, part in zip(plain[1:], x.chunk(4), strict=True)]))
    assert_same_state(multi, plain)
    assert multi.num_batches_tracked.tolist() == [0, 1, 1, 1, 1]


def test_statistics_are_fp32_under_autocast():
    plain = separate(2, 3)
    multi = stacked(plain)
    x = (torch.randn(64, 3, 8, 8) + 100).bfloat16()  # bf16 sums of such values would be off by whole units

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = multi(x)

    assert out.dtype == torch.bfloat16
    assert multi.running_mean.dtype == torch.float32
    expected = torch.stack(
        [p.running_mean * 0.9 + 0.1 * part.double().mean((0, 2, 3)) for p, part in zip(plain, x.chunk(2), strict=True)]
    )
    torch.testing.assert_close(multi.running_mean.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_into_one_graph_on_any_branches(training):
    plain = separate(3, 4)
    eager, multi = stacked(plain).train(training), stacked(plain).train(training)
    compiled = torch.compile(multi, fullgraph=True, backend="aot_eager")

    for active in ((0, 1, 2), (1,), (1, 2)):
        eager.active = multi.active = active
        x = torch.randn(12, 4, 3, 3)
        torch.testing.assert_close(compiled(x), eager(x))

    for key, value in multi.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[key])


@pytest.mark.parametrize("assign", [False, True])
def test_the_state_of_a_plain_batch_norm_loads_into_every_branch(assign):
    (plain,) = separate(1, 3)
    plain(torch.randn(2, 3, 4, 4))
    multi = MultiBatchNorm2d(3, 4)

    multi.load_state_dict(plain.state_dict(), assign=assign)

    assert_same_state(multi, [plain] * 4)
    multi.weight.data[0] = 0.0  # the branches must not be views of one row
    assert multi.weight[1].all()


def test_a_branch_goes_out_as_a_plain_batch_norm_and_comes_back():
    plain = separate(3, 2)
    multi = stacked(plain, eps=1e-3, momentum=0.3).eval()
    multi.weight.requires_grad_(False)

    out = multi.to_batch_norm(2)

    assert type(out) is nn.BatchNorm2d
    assert (out.eps, out.momentum, out.training) == (1e-3, 0.3, False)
    assert (out.weight.requires_grad, out.bias.requires_grad) == (False, True)
    assert all(torch.equal(value, plain[2].state_dict()[key]) for key, value in out.state_dict().items())
    assert_same_state(MultiBatchNorm2d.from_batch_norm(out, 2), [plain[2]] * 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiBatchNorm2d(3, 0), "branches to be a positive integer, got 0"),
        (lambda: all_active(5)(torch.zeros(6, 3, 2, 2)), "5 equal segments.* got 6 images"),
        (lambda: MultiBatchNorm2d(3, 1)(torch.zeros(6, 4, 2, 2)), r"\(N, 3, H, W\), got \(6, 4, 2, 2\)"),
        (lambda: MultiBatchNorm2d(3, 2).to_batch_norm(2), r"branches out of 0 to 1, got \(2,\)"),
        (lambda: MultiBatchNorm2d.from_batch_norm(nn.BatchNorm2d(3, affine=False), 2), "affine and running statistics"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
