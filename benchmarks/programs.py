"""How far ours and the naive loop end from the truth, and how far the naive loop ends from itself.

The truth is the naive loop in double precision. What separates two programs that do the same sums in another order in
single precision is what single precision allows, and the naive loop in other batches or threads is such a pair.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdef.defense import ActiveDefense, lockstep, whole_network


@dataclass(frozen=True)
class Subject:
    """What every program is given: a defense in float32, with its parameters, and (N, C, H, W) float32 images."""

    defense: ActiveDefense
    images: Tensor
    noise: Tensor = field(init=False)

    def __post_init__(self) -> None:
        noise = self.defense.noise(torch.arange(len(self.images)), 0, self.images)
        object.__setattr__(self, "noise", noise)

    def model(self, dtype: torch.dtype) -> torch.nn.Module:
        """A copy of the model in ``dtype``."""
        return copy.deepcopy(self.defense.model).to(dtype)


@dataclass(frozen=True)
class Ends:
    """Where a program took the images: (N, C, H, W) images, (N,) steps, (N,) L_F and (N,) classes."""

    images: Tensor
    steps: Tensor
    loss: Tensor
    decisions: Tensor


@dataclass(frozen=True)
class Agreement:
    """Two programs on the same images: shares and distances.

    Attributes:
        steps_equal: share of the images with the same number of steps.
        steps_apart: largest difference in steps.
        within: share of the images whose every pixel is within 1e-5.
        median: median of an image's largest difference.
        largest: largest difference of a pixel.
        decisions_equal: share of the images with the same class.
    """

    steps_equal: float
    steps_apart: int
    within: float
    median: float
    largest: float
    decisions_equal: float

    @classmethod
    def of(cls, ends: Ends, expected: Ends) -> "Agreement":
        """Compare in double precision."""
        apart = (ends.steps - expected.steps).abs()
        largest = (ends.images.double() - expected.images.double()).abs().amax((1, 2, 3))
        return cls(
            steps_equal=_share(apart == 0),
            steps_apart=int(apart.max()),
            within=_share(largest <= 1e-5),
            median=float(largest.median()),
            largest=float(largest.max()),
            decisions_equal=_share(ends.decisions == expected.decisions),
        )


def naive(subject: Subject, dtype: torch.dtype, *, batch: int) -> Ends:
    """The naive loop, ``batch`` images together."""
    model, defense = subject.model(dtype), subject.defense
    parts = []
    with whole_network(model, defense.layer) as losses:
        for images, noise in zip(subject.images.split(batch), subject.noise.split(batch), strict=True):
            ended = lockstep(
                losses,
                images.to(dtype),
                noise.to(dtype),
                beta=defense.beta,
                delta=defense.delta,
                max_steps=defense.max_steps,
            )
            with torch.no_grad():
                parts.append((*ended, model(ended[0]).argmax(1)))
    return Ends(*map(torch.cat, zip(*parts, strict=True)))


def ours(subject: Subject, dtype: torch.dtype, *, slots: int, compile: bool = False) -> Ends:
    """The defense, on ``slots`` slots."""
    options = {"seed": subject.defense.seed, "slots": slots, "compile": compile}
    defense = ActiveDefense.from_config(subject.model(dtype), subject.defense.config(), **options)
    answers = defense.defend(subject.images.to(dtype))
    return Ends(answers.images, answers.steps, answers.loss, answers.logits.argmax(1))


def programs(subject: Subject) -> dict[str, Callable[[], Ends]]:
    """By name, what is held against the truth. All but the last in single precision."""
    single, double = torch.float32, torch.float64

    def on_two_threads(program: Callable[[], Ends]) -> Callable[[], Ends]:
        def run() -> Ends:
            with threads(2):
                return program()

        return run

    sizes = (64, 7, 1)
    programs: dict[str, Callable[[], Ends]] = {}
    for size in sizes:
        programs[f"naive, batches of {size}"] = lambda size=size: naive(subject, single, batch=size)  # type: ignore[misc]
    programs["naive, batches of 64, two threads"] = on_two_threads(lambda: naive(subject, single, batch=64))
    for name, compile in (("eager", False), ("compiled", True)):
        for size in sizes:
            programs[f"ours, {name}, {size} slots"] = lambda size=size, compile=compile: ours(  # type: ignore[misc]
                subject, single, slots=size, compile=compile
            )
    programs["ours, eager, 64 slots, two threads"] = on_two_threads(lambda: ours(subject, single, slots=64))
    programs["ours, eager, 64 slots, float64"] = lambda: ours(subject, double, slots=64)
    return programs


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch on ``count`` threads, and then on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _share(these: Tensor) -> float:
    return float(these.double().mean())
