"""Steps of every method in double precision, on however many ranks there are: what they log and where they lead."""

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from fastdef import distributed
from fastdef.data import Batches, Dataset
from fastdef.losses import PGDAT, RECIPES
from fastdef.nn import build, convert_to_afa, convert_to_multi_bn, parse_architecture
from fastdef.training import Branches, Fusing, SequentialBranches, Smoothed, Smoothing, TrainConfig
from fastdef.training.trainer import Trainer

XI = [0.0, 4 / 255, 8 / 255]
PIXELS = torch.randint(0, 256, (24, 1, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
DATA = Dataset(PIXELS, torch.arange(24) % 10, tuple("abcdefghij"), "noise", "fit")


class Doubles(Batches):
    def epoch(self, epoch):
        return ((images.double(), labels) for images, labels in super().epoch(epoch))


def network(branches=0):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1)).double()
    return convert_to_multi_bn(model, branches) if branches else model


def fusing(placement):
    return Fusing(convert_to_afa(network(2), placement=placement).double(), XI)


def methods():
    for name, recipe in RECIPES.items():
        yield f"{name}, one batch", Branches(network(3), recipe(), XI), {}
        yield f"{name}, in turn", SequentialBranches(network(3), recipe(), XI), {}
    yield "smoothed", Smoothed(Branches(network(3), PGDAT(), XI), delta=1e-4), {}
    yield "smoothing", Smoothing(network(), delta=1e-4), {"ema": 0.5, "clip": 0.1}
    yield "shared", fusing("shared"), {}
    yield "layerwise", fusing("layerwise"), {}


def trained(method, options):
    trainer = Trainer(method, TrainConfig(batch_size=8, lr=0.05, **options))
    found = {}
    with method.running():
        for number, (images, labels) in enumerate(Doubles(DATA, 8).epoch(0)):
            for name, value in trainer.step(images, labels, number).items():
                found[f"{number}.{name}"] = distributed.all_reduce(value) / distributed.world_size()
        shipped = trainer.eval_model(0, Doubles(DATA, 8))
    gradients = {
        f"{name}.grad": weight.grad for name, weight in method.model.named_parameters() if weight.requires_grad
    }
    return (
        found
        | gradients
        | trainer.averages
        | {f"shipped.{name}": value for name, value in shipped.state_dict().items()}
    )


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = {}
    for case, method, options in methods():
        found |= {f"{case}: {name}": value.detach() for name, value in trained(method, options).items()}
    for other in distributed.all_gather_object(found):  # the same on every rank, to the bit
        assert all(torch.equal(value, other[name]) for name, value in found.items())
    if distributed.rank() == 0:
        save_file({name: value.contiguous().clone() for name, value in found.items()}, sys.argv[1])
    dist.destroy_process_group()
