"""What 8 devices and 8 machines would do with a step of stage I: computed from one device's rate, nothing is measured.

A step sends, for gradients, 4 bytes a trained weight, by one ring all-reduce after the backward, which hides behind
nothing; and for each batch norm a gather in the forward and an all-reduce in the backward, of 2 * segments * channels
numbers a rank. A ring over W ranks sends (W - 1) / W of what is gathered, twice that of what is reduced, and waits
W - 1 and 2 (W - 1) times for the link. Every device keeps the batch it was measured with, so the joint batch grows.
What is left out: slow ranks, a shared network, and the random starts that every rank draws for the joint batch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fastdef.nn import MultiBatchNorm2d, build, convert_to_multi_bn, parse_architecture

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Link:
    """An assumption: what a link of the ring carries, and how long a message is under way.

    Attributes:
        bandwidth: bytes/s of each rank, one way.
        latency: seconds a hop.
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Messages:
    """What a rank contributes to a step.

    Attributes:
        gradients: bytes.
        statistics: bytes of each batch norm, one way.
    """

    gradients: int
    statistics: tuple[int, ...]

    def seconds(self, ranks: int, link: Link) -> float:
        """Of all of them, one after another."""
        others = ranks - 1
        reduced = [self.gradients, *self.statistics]
        gathered = [ranks * size for size in self.statistics]
        sent = (2 * sum(reduced) + sum(gathered)) * others / ranks
        return sent / link.bandwidth + (2 * len(reduced) + len(gathered)) * others * link.latency


LINKS = {
    "8 in one machine, NVLink": (8, Link(300e9, 3e-6)),
    "8 machines of 1, 400 Gbit/s": (8, Link(50e9, 10e-6)),
    "8 machines of 1, 100 Gbit/s": (8, Link(12.5e9, 10e-6)),
    "8 machines of 1, 10 Gbit/s": (8, Link(1.25e9, 30e-6)),
    "8 machines of 8, 400 Gbit/s a device": (64, Link(50e9, 10e-6)),
    "8 machines of 8, 50 Gbit/s a device": (64, Link(6.25e9, 10e-6)),
}
_OURS = ("one batch", "one batch, compiled")  # Algorithm 1 in turn sends the statistics of each branch by themselves


def messages(architecture: str, branches: int, segments: int) -> Messages:
    """Counted on the model, whose statistics are in float32."""
    with torch.device("meta"):
        model = convert_to_multi_bn(build(parse_architecture(architecture)), branches)
    gradients = 4 * sum(weight.numel() for weight in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, MultiBatchNorm2d)]
    return Messages(gradients, tuple(4 * 2 * segments * norm.num_features for norm in norms))


def table(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each form of the step in one batch, and each link."""
    branches, batch = measured["branches"], measured["batch"]
    sent = messages(measured["architecture"], branches, segments=branches)  # PGD-AT: a segment a branch
    rows = []
    for kind in _OURS:
        alone = batch / measured["contenders"][kind]["images_per_second"]
        for name, (ranks, link) in LINKS.items():
            step = alone + sent.seconds(ranks, link)
            rows.append({"step": kind, "link": name, "images_per_second": ranks * batch / step, "share": alone / step})
    return rows


def main(
    rates: Annotated[Path, typer.Argument(help="of benchmarks.bench_training --json")] = (
        RESULTS / "cpu-2-cores" / "training.json"
    ),
) -> None:
    """Print the table; its assumptions are ``LINKS``."""
    measured = json.loads(rates.read_text())
    sent = messages(measured["architecture"], measured["branches"], measured["branches"])
    print(f"COMPUTED, not measured, from the rates of one {measured['machine']['name']} in {rates}")
    print(
        f"{measured['architecture']}, {measured['batch']} images a device: {sent.gradients / 1e6:.2f} MB of gradients, "
        f"2 x {len(sent.statistics)} messages of statistics, {2 * sum(sent.statistics) / 1e3:.0f} kB together"
    )
    for row in table(measured):
        _, link = LINKS[row["link"]]
        assumed = f"{link.bandwidth / 1e9:g} GB/s and {link.latency * 1e6:g} us a hop assumed"
        told = f"{row['images_per_second']:10.1f} images/s, {row['share']:6.1%} of the ranks times one"
        print(f"{row['step']:20} {row['link']:37} {told}; {assumed}")


if __name__ == "__main__":
    typer.run(main)
