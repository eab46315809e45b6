"""Does an export answer as PyTorch does? Part by part on the same input, then whole, on the same images and noise.

In single precision two programs cannot walk the same path to the end: a feature within rounding of the mean has sign 1
in one and -1 in the other, and the step it takes is finite. So each part is held to PyTorch's on PyTorch's input,
where rounding stays rounding, and the whole to the same steps and decisions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense
from fastdef.export.engine import CPU, load_engine
from fastdef.export.sessions import OnnxSession

PROBABILITY = 1e-4  # largest difference on the same input
LOSS = 1e-5  # relative
STEP = 0.01  # of a step's length: one sign that flips is 2 / M of it
STEPS_EQUAL = 0.95  # the naive loop and ours, both PyTorch, agree for 98 % of the images in single precision
STEPS_APART = 2
DECISIONS_EQUAL = 0.99


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
class Whole:
    """The whole way, from images to answers.

    Attributes:
        name: of the form: in one file, or driven.
        steps_equal: share of the images that took the same number of steps.
        steps_apart: largest difference in steps.
        decisions_equal: share of the images with the same class.
        probabilities_within: share of the images whose probabilities are all within 1e-4.
        probabilities_apart: largest difference of a probability.
    """

    name: str
    steps_equal: float
    steps_apart: int
    decisions_equal: float
    probabilities_within: float
    probabilities_apart: float

    @property
    def holds(self) -> bool:
        """Steps equal for 95 % and never more than two apart, and decisions equal for 99 %."""
        return (
            self.steps_equal >= STEPS_EQUAL
            and self.steps_apart <= STEPS_APART
            and self.decisions_equal >= DECISIONS_EQUAL
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
    for name, driven in (("defended.onnx", False), ("step.onnx, driven", True)):
        with load_engine(folder, driven=driven) as engine:
            got = engine(images.numpy(), seed=defense.seed)
        steps = (torch.from_numpy(got.steps) - answers.steps).abs()
        probabilities, expected = torch.from_numpy(got.probabilities), answers.logits.exp()
        yield Whole(
            name,
            steps_equal=float((steps == 0).float().mean()),
            steps_apart=int(steps.max()),
            decisions_equal=float((probabilities.argmax(1) == expected.argmax(1)).float().mean()),
            probabilities_within=float(((probabilities - expected).abs().amax(1) <= PROBABILITY).float().mean()),
            probabilities_apart=_apart(probabilities, expected),
        )


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
    _, _, found, _ = step(got[0], *state[1:])
    length = (moved - noised).flatten(1).norm(dim=1)
    yield Part(
        "step.onnx: images_out, over a step", float(((got[0] - moved).flatten(1).norm(dim=1) / length).max()), STEP
    )
    yield Part("step.onnx: loss, relative", float(((got[2] - found) / found).abs().max()), LOSS)


def _apart(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max())
