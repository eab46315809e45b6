"""Does an export answer as PyTorch does? Part by part on the same input, then whole, on the same images and noise.

In single precision two programs cannot walk the same path to the end: a feature within rounding of the mean has sign 1
in one and -1 in the other, and the step it takes is finite. So each part is held to PyTorch's on PyTorch's input,
where rounding stays rounding; the whole is held to PyTorch's step for step with its floats in double precision, which
tells a wrong file from rounding; and in single precision to as much as two programs of PyTorch's agree.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense
from fastdef.export.engine import load_engine
from fastdef.export.float64_session import Float64Session
from fastdef.export.opening import CPU
from fastdef.export.sessions import OnnxSession

PROBABILITY = 1e-4  # largest difference on the same input
TIE = 1e-6  # of probabilities: nobody's decision hangs on less
LOSS = 1e-5  # relative
STEP = 0.01  # of a step's length: one sign that flips is 2 / M of it
PIXEL = 1e-6  # of images smoothed in double precision: constants are rounded to single precision in the file
IN_DOUBLE = 8  # images; those that take at most so many steps, as each is a second or so on a large network
LONGEST_IN_DOUBLE = 50


@dataclass(frozen=True)
class Allowed:
    """What :class:`Whole` may be: its least shares and its largest difference in steps."""

    steps_equal: float
    steps_apart: int
    decisions_equal: float
    probabilities_within: float


DOUBLE = Allowed(steps_equal=1, steps_apart=0, decisions_equal=1, probabilities_within=1)
# The naive loop and itself in batches of one, both PyTorch, agree for 97 % of the images.
SINGLE = Allowed(steps_equal=0.95, steps_apart=2, decisions_equal=0.99, probabilities_within=0)


@dataclass(frozen=True)
class Part:
    """One tensor of one file against PyTorch's, on the same input.

    Attributes:
        name: file and tensor.
        apart: largest difference over the images.
        allowed: what it may be.
    """

    name: str
    apart: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is no more than allowed; a NaN is more."""
        return self.apart <= self.allowed

    def __str__(self) -> str:
        return f"{self.name} {self.apart:.1e} apart{'' if self.holds else f', more than {self.allowed:.0e}'}"


@dataclass(frozen=True)
class Ends:
    """Where N images ended: (N,) steps and (N, classes) probabilities."""

    steps: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Whole:
    """The whole way, from images to answers.

    Attributes:
        name: of the form: in double precision, in one file, or driven.
        steps_equal: share of the images that took the same number of steps.
        steps_apart: largest difference in steps.
        decisions_equal: share of the images with the same class, or one that is as likely but for rounding.
        probabilities_within: share of the images whose probabilities are all within 1e-4.
        probabilities_apart: largest difference of a probability.
        allowed: what they may be.
    """

    name: str
    steps_equal: float
    steps_apart: int
    decisions_equal: float
    probabilities_within: float
    probabilities_apart: float
    allowed: Allowed

    @classmethod
    def of(cls, name: str, ends: Ends, expected: Ends, allowed: Allowed) -> "Whole":
        """Compare."""
        steps = (ends.steps - expected.steps).abs()
        apart = (ends.probabilities - expected.probabilities).abs().amax(1)
        chosen = expected.probabilities.gather(1, ends.probabilities.argmax(1, keepdim=True)).squeeze(1)
        decided = (chosen >= expected.probabilities.amax(1) - TIE) & ends.probabilities.isfinite().all(1)
        return cls(
            name,
            steps_equal=float((steps == 0).float().mean()),
            steps_apart=int(steps.max()),
            decisions_equal=float(decided.float().mean()),
            probabilities_within=float((apart <= PROBABILITY).float().mean()),
            probabilities_apart=float(apart.max()),
            allowed=allowed,
        )

    @property
    def holds(self) -> bool:
        """Whether each is what it may be; a NaN is not."""
        return (
            self.steps_equal >= self.allowed.steps_equal
            and self.steps_apart <= self.allowed.steps_apart
            and self.decisions_equal >= self.allowed.decisions_equal
            and self.probabilities_within >= self.allowed.probabilities_within
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: steps equal for {self.steps_equal:.1%} and at most {self.steps_apart} apart, decisions "
            f"equal for {self.decisions_equal:.1%}, probabilities within 1e-4 for {self.probabilities_within:.1%} and "
            f"at most {self.probabilities_apart:.1e} apart"
        )


Finding = Part | Whole


def check_parity(checkpoint: Checkpoint, folder: Path, images: Tensor) -> list[Finding]:
    """Compare what lies in ``folder`` in ONNX Runtime with PyTorch; in order, so the first that fails is the cause.

    Args:
        checkpoint: what was exported, on the CPU.
        folder: where to.
        images: (N, C, H, W) float32 in [0, 1].

    Raises:
        ValueError: if a file does not load.
    """
    return list(_findings(checkpoint, folder, images))


@torch.no_grad()
def _findings(checkpoint: Checkpoint, folder: Path, images: Tensor) -> Iterator[Finding]:
    classifier = OnnxSession(folder / "classifier.onnx", CPU)
    (probabilities,) = classifier.run({"images": images})
    expected = checkpoint.model(images).softmax(1)
    yield Part("classifier.onnx: probabilities", _apart(probabilities, expected), PROBABILITY)
    if checkpoint.defense is None:
        return
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    yield from _one_step(defense, folder, images)
    answers = defense.defend(images)
    (probabilities,) = classifier.run({"images": answers.images})
    expected = checkpoint.model(answers.images).softmax(1)
    yield Part("classifier.onnx: probabilities of smoothed images", _apart(probabilities, expected), PROBABILITY)
    single = Ends(answers.steps, answers.logits.exp())
    short = (answers.steps <= LONGEST_IN_DOUBLE).nonzero().flatten()[:IN_DOUBLE]
    if len(short):
        yield from _whole_in_double(defense, folder, images[short], short)
    for name, driven in (("defended.onnx", False), ("step.onnx, driven", True)):
        with load_engine(folder, driven=driven) as engine:
            got = engine(images.numpy(), seed=defense.seed)
        ends = Ends(torch.from_numpy(got.steps), torch.from_numpy(got.probabilities))
        yield Whole.of(name, ends, single, SINGLE)


def _one_step(defense: ActiveDefense, folder: Path, images: Tensor) -> Iterator[Part]:
    """Of ``step.onnx``, from PyTorch's noised images."""
    noised = defense.noised(images)
    counts = torch.zeros(len(images), dtype=torch.int32)
    state = noised, counts, counts + 1, torch.tensor(0.0)
    step = defense.masked_step(noised)
    moved, _, _, _ = step(*state)
    session = OnnxSession(folder / "step.onnx", CPU)
    # The file takes several steps a call, of which the limit allows one; its loss is that of the last look.
    got = session.run(dict(zip(session.inputs, state, strict=True)))
    _, _, loss, _ = step(got[0], *state[1:])
    length = (moved - noised).flatten(1).norm(dim=1)
    yield Part(
        "step.onnx: images_out, over a step", float(((got[0] - moved).flatten(1).norm(dim=1) / length).max()), STEP
    )
    yield Part("step.onnx: loss, relative", float(((got[2] - loss) / loss).abs().max()), LOSS)


def _whole_in_double(defense: ActiveDefense, folder: Path, images: Tensor, ids: Tensor) -> Iterator[Finding]:
    noise = [defense.noise(ids, loop, images) for loop in range(defense.outer_loops)]
    given = {"images": images.double(), "noise": torch.stack(noise, dim=1).double()}
    probabilities, steps, _, _, smoothed = Float64Session(folder / "noised.onnx").run(given)
    expected, images = _in_double(defense, **given)
    name = f"noised.onnx in double precision, {len(ids)} of them"
    yield Part(f"{name}: smoothed images", _apart(smoothed, images), PIXEL)
    yield Whole.of(name, Ends(steps, probabilities), expected, DOUBLE)


def _in_double(defense: ActiveDefense, images: Tensor, noise: Tensor) -> tuple[Ends, Tensor]:
    """PyTorch's, on weights that are folded in single precision, as the file has them; and the smoothed images."""
    step, model = defense.masked_step(images.float()).double(), copy.deepcopy(defense.model).double()
    moved = (images[:, None] + noise).flatten(0, 1)
    steps, delta = torch.zeros(len(moved), dtype=torch.int32), torch.tensor(defense.delta).double()
    running = torch.ones_like(steps, dtype=torch.bool)
    while running.any():
        moved, steps, _, running = step(moved, steps, torch.full_like(steps, defense.max_steps), delta)
    shape = (-1, defense.outer_loops)
    ends = Ends(steps.view(shape).sum(1), model(moved).softmax(1).unflatten(0, shape).mean(1))
    return ends, moved.unflatten(0, shape)[:, 0]


def _apart(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max())
