"""Batch norms in training on however many ranks there are: outputs, gradients and statistics of the joint batch."""

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from fastdef import distributed
from fastdef.nn import MultiBatchNorm2d, joint_statistics, set_branch

BRANCHES, BATCH = 3, 8


def joint(value):
    """(S, b, ...) of each rank -> (S * B, ...)."""
    return torch.cat(tuple(distributed.all_gather(value)), dim=1).flatten(0, 1)


def trained(norm, active, *, dtype, layout):
    """Two batches of segments through a batch norm; every figure is of the joint batch."""
    segments = len(active)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number in range(2):
        x, weight = (torch.randn(segments, BATCH, 4, 5, 3, generator=generator).to(dtype) for _ in range(2))
        x = 3 + x * torch.arange(1, BATCH + 1)[:, None, None, None]  # ranks whose means and variances differ
        own = distributed.local_slice(BATCH)
        share = x[:, own].flatten(0, 1).contiguous(memory_format=layout).requires_grad_()
        with joint_statistics(norm):
            out = norm(share)
        assert out.is_contiguous(memory_format=layout)
        loss = (out.unflatten(0, (segments, -1)) * weight[:, own]).sin().sum()
        gradient, *affine = torch.autograd.grad(loss, [share, *norm.parameters()])
        found[f"{number}.out"] = joint(out.detach().unflatten(0, (segments, -1)))
        found[f"{number}.gradient"] = joint(gradient.unflatten(0, (segments, -1)))
        for (name, _), value in zip(norm.named_parameters(), affine, strict=True):
            found[f"{number}.{name}"] = distributed.all_reduce(value)
    return found | norm.state_dict()


def cases():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for momentum in (0.1, None):
            options = {"momentum": momentum, "dtype": torch.promote_types(dtype, torch.float32)}
            multi = MultiBatchNorm2d(4, BRANCHES, **options)
            nn.init.normal_(multi.weight)
            active = (0, 1, 1, 2)  # a branch may have two segments, as in TRADES
            set_branch(multi, active)
            layout = torch.channels_last
            yield f"multi.{name}.{momentum}", trained(multi, active, dtype=dtype, layout=layout)
            plain = nn.BatchNorm2d(4, **options)
            nn.init.normal_(plain.weight)
            layout = torch.contiguous_format
            yield f"plain.{name}.{momentum}", trained(plain, (0,), dtype=dtype, layout=layout)
            bare = nn.BatchNorm2d(4, affine=False, **options)
            yield f"bare.{name}.{momentum}", trained(bare, (0,), dtype=dtype, layout=layout)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {f"{case}.{name}": value for case, values in cases() for name, value in values.items()}
    everyone = distributed.all_gather_object(found)
    assert all(torch.equal(value, other[name]) for other in everyone for name, value in found.items())
    if distributed.rank() == 0:
        save_file({name: value.contiguous().clone() for name, value in found.items()}, sys.argv[1])
    dist.destroy_process_group()
