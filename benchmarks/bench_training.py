"""A step of AFA's stage I, K = 5, PGD-AT: Algorithm 1 written plainly against one batch of all branches, compiled.

A step goes K * 3 + (K - 1) * 10 * 2 = 95 times through the network (a forward is one, so is either half of a backward),
the same on both sides: what is gained is fusion, channels_last, and on a GPU larger batches and fewer launches.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdef.bench.machine import interleaved, machine
from fastdef.io import write_json
from fastdef.losses import PGDAT
from fastdef.nn import build, convert_to_multi_bn, parse_architecture, set_branch
from fastdef.training import STRENGTHS, Branches, SequentialBranches, TrainConfig
from fastdef.training.trainer import Trainer

BASELINE = "Algorithm 1, plain"


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, strengths: list[float]
) -> None:
    """Algorithm 1 as a reader of the paper would write it."""
    model.train()
    set_branch(model, 0)
    total = cross_entropy(model(images), labels)
    for k, eps in enumerate(strengths[1:], start=1):
        set_branch(model, k)
        model.eval()
        x = images + torch.empty_like(images).uniform_(-eps, eps)
        for _ in range(10):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels), x)
            x = x.detach() + eps / 4 * gradient.sign()
            x = torch.min(torch.max(x, images - eps), images + eps).clamp(0, 1)
        model.train()
        total = total + cross_entropy(model(x), labels)
    optimizer.zero_grad()
    total.backward()
    optimizer.step()


def contenders(
    architecture: str, images: Tensor, labels: Tensor, strengths: list[float], *, bf16: bool
) -> dict[str, Callable[[], object]]:
    """What runs against what, each with a model of its own."""
    device = images.device

    def network() -> nn.Module:
        described = parse_architecture(architecture, in_channels=images.shape[1])
        return convert_to_multi_bn(build(described).to(device), len(strengths))

    def ours(kind: type[Branches], *, compile: bool) -> Callable[[], object]:
        trainer = Trainer(kind(network(), PGDAT(), strengths, compile=compile), TrainConfig(compile=compile, bf16=bf16))
        return lambda: trainer.step(images, labels, 0)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def plain() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            plain_step(model, optimizer, images, labels, strengths)

    found = {
        BASELINE: plain,
        "one batch": ours(Branches, compile=False),
        "one batch, compiled": ours(Branches, compile=True),
    }
    sequential = SequentialBranches(network(), PGDAT(), strengths, compile=True)
    trainer = Trainer(sequential, TrainConfig(bf16=bf16))
    found["Algorithm 1, attacks compiled"] = lambda: trainer.step(images, labels, 0)
    return found


def main(
    architecture: str = "wrn-10-2",
    batch: int = 128,
    size: int = 32,
    channels: int = 3,
    turns: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    bf16: bool = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
) -> None:
    """Print images a second of each, and the ratio to the first; write JSON if asked."""
    place = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, channels, size, size, generator=generator).to(place)
    labels = torch.randint(0, 10, (batch,), generator=generator).to(place)
    strengths = [xi / 255 for xi in STRENGTHS[5]]
    taken = interleaved(contenders(architecture, images, labels, strengths, bf16=bf16), place, turns=turns)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    rows = {
        name: {"images_per_second": batch / s, "seconds": taken[name], "over_plain": medians[BASELINE] / s}
        for name, s in medians.items()
    }
    for name, row in rows.items():
        print(f"{name:32} {row['images_per_second']:8.1f} images/s  {row['over_plain']:.2f}x")
    if json_file is not None:
        settings = {"architecture": architecture, "batch": batch, "size": size, "branches": 5, "bf16": bf16}
        result = {"machine": machine(place), **settings, "turns": turns, "contenders": rows}
        write_json(json_file, result)


if __name__ == "__main__":
    typer.run(main)
