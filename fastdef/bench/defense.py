"""Active Defense, from a paper's loop to ours, one technique at a time, on the same images in one run.

A step of the naive loop runs the whole network forward and backward with weight gradients; ours runs the network up to
the smoothed layer, forward and back to the image, which is arithmetic that cannot be spared. The rest is scheduling.
"""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdef.bench.machine import interleaved, machine, peak_bytes, seconds
from fastdef.defense import ActiveDefense, Losses, lockstep, whole_network
from fastdef.nn import prefix
from fastdef.ops import smoothing_loss
from fastdef.runtime import Stats

Contender = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N,) steps


@dataclass(frozen=True)
class Setting:
    """What every contender is given.

    Attributes:
        defense: model, layer and parameters.
        images: (N, C, H, W) real images.
        batch: images that a lockstep contender runs together, and slots of ours.
        turns: timed runs of each contender; the median counts.
    """

    defense: ActiveDefense
    images: Tensor
    batch: int
    turns: int


def bench_defense(setting: Setting, *, half: torch.dtype | None, step: Callable[[str], object]) -> dict[str, Any]:
    """Rates of every contender.

    Args:
        setting: the images and the defense.
        half: a 16-bit dtype for one more contender, None for none.
        step: called with the name of what is about to be run.

    Returns:
        JSON-able figures: images a second, network steps a second, useful share, ratio to naive, peak memory of a
        step, by contender; latencies of ours, and of the classifier without a defense; the machine.
    """
    device = setting.images.device
    with ExitStack() as stack:
        contenders, stats = _contenders(setting, half, stack)
        step("timing: " + ", ".join(contenders))
        steps: dict[str, Tensor] = {}

        def work(name: str) -> Callable[[], None]:
            def call() -> None:
                steps[name] = contenders[name](setting.images)

            return call

        taken = interleaved({name: work(name) for name in contenders}, device, turns=setting.turns)
        step("memory of one step")
        memory = {name: peak_bytes(one, device) for name, one in _single_steps(setting, stack).items()}
    medians = {name: statistics.median(values) for name, values in taken.items()}
    rows = {
        name: {
            "images_per_second": len(setting.images) / value,
            "steps_per_second": int(steps[name].sum()) / value,
            "useful_share": _useful(name, steps[name], setting.batch, stats),
            "ratio_to_naive": medians["naive"] / value,
            "seconds": taken[name],
        }
        for name, value in medians.items()
    }
    step("latency")
    return {
        "machine": machine(device),
        "images": len(setting.images),
        "shape": list(setting.images.shape[1:]),
        "batch": setting.batch,
        "defense": setting.defense.config(),
        "steps": _spread(steps["slots"].float().tolist()),
        "contenders": rows,
        "step_peak_bytes": memory,
        "latency_seconds": {str(size): _latencies(setting, size) for size in (1, 64) if size <= len(setting.images)},
    }


def _contenders(
    setting: Setting, half: torch.dtype | None, stack: ExitStack
) -> tuple[dict[str, Contender], dict[str, Stats]]:
    defense = setting.defense
    whole = stack.enter_context(whole_network(defense.model, defense.layer))
    ours = {
        "traced": _like(defense, setting, compile=False, deterministic=True),
        "compiled": _like(defense, setting, compile=True, deterministic=True),
        "slots": _like(defense, setting, compile=True, deterministic=False),
    }
    if half is not None:
        name = str(half).removeprefix("torch.")
        ours[name] = _like(defense, setting, compile=True, deterministic=False, dtype=half)
    contenders: dict[str, Contender] = {
        "naive": _in_lockstep(whole, setting),
        "naive_compiled": _in_lockstep(torch.compile(whole), setting),
        "truncated": _in_lockstep(_truncated(defense), setting),
    }
    for name, other in ours.items():
        chunks = setting.batch if name in ("traced", "compiled") else len(setting.images)
        contenders[name] = _ours(other, chunks)
    return contenders, {name: other.stats for name, other in ours.items()}


def _like(defense: ActiveDefense, setting: Setting, **options: Any) -> ActiveDefense:
    return ActiveDefense.from_config(defense.model, defense.config(), slots=setting.batch, **options)


def _in_lockstep(losses: Losses, setting: Setting) -> Contender:
    defense = setting.defense

    def run(images: Tensor) -> Tensor:
        steps = []
        for start in range(0, len(images), setting.batch):
            chunk = images[start : start + setting.batch]
            noise = defense.noised(chunk, ids=torch.arange(start, start + len(chunk))) - chunk
            _, taken, _ = lockstep(
                losses, chunk, noise, beta=defense.beta, delta=defense.delta, max_steps=defense.max_steps
            )
            steps.append(taken)
        defense.model.zero_grad()
        return torch.cat(steps)

    return run


def _truncated(defense: ActiveDefense) -> Losses:
    """The network up to the layer only, its weights frozen: what a careful user would write."""
    network = prefix(defense.model, defense.layer)

    def losses(images: Tensor) -> Tensor:
        weights = [weight for weight in defense.model.parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            return smoothing_loss(network(images))
        finally:
            for weight in weights:
                weight.requires_grad_(True)

    return losses


def _ours(defense: ActiveDefense, chunk: int) -> Contender:
    def run(images: Tensor) -> Tensor:
        defense.stats.clear()
        ids = torch.arange(len(images))
        parts = [defense.smooth(images[i : i + chunk], ids=ids[i : i + chunk]) for i in range(0, len(images), chunk)]
        return torch.cat([part.steps for part in parts])

    return run


def _useful(name: str, steps: Tensor, batch: int, stats: dict[str, Stats]) -> float:
    """Share of the steps computed that moved an image or saw it done."""
    if name in stats:
        return stats[name].useful / stats[name].slot_steps
    computed = sum(len(chunk) * (int(chunk.max()) + 1) for chunk in steps.split(batch))
    return (int(steps.sum()) + len(steps)) / computed


def _single_steps(setting: Setting, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """One step at the same batch, as the naive loop and as ours take it."""
    defense, images = setting.defense, setting.images[: setting.batch]
    losses = stack.enter_context(whole_network(defense.model, defense.layer))

    def naive() -> None:
        t = images.detach().requires_grad_()
        losses(t).sum().backward()
        defense.model.zero_grad()

    slots = _like(defense, setting, compile=True).empty_slots(len(images), images[0])
    counts = torch.zeros(len(images), dtype=torch.int32, device=images.device)
    slots.insert(list(range(len(images))), range(len(images)), images, counts, counts + 1)
    return {"naive": naive, "compiled": slots.advance_chunk}  # a replayed graph would not ask the allocator


def _latencies(setting: Setting, size: int) -> dict[str, dict[str, float]]:
    """Seconds from a batch to its answers with the defense and without, over the same batches, one after the other."""
    defense = _like(setting.defense, setting, compile=True, deterministic=False)
    runs = max(20, min(100, len(setting.images) // size)) if size == 1 else 5
    ways: dict[str, Callable[[Tensor], object]] = {
        "defended": defense.defend,
        "undefended": torch.no_grad()(defense.model),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    defense.defend(setting.images[:size])
    for turn in range(runs):
        start = turn * size % max(1, len(setting.images) - size + 1)
        batch = setting.images[start : start + size]
        for name, answer in ways.items():
            taken[name].append(seconds(partial(answer, batch), batch.device))
    return {name: _spread(values) for name, values in taken.items()}


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{p}": ordered[min(len(ordered) - 1, round(p / 100 * (len(ordered) - 1)))] for p in (50, 95, 99)}
