"""What an exported classifier answers, known beforehand: an engine that answers otherwise refuses to start.

An engine may compute int64 in 32 bits, float32 in bfloat16, or a loop wrongly, and say nothing. So ``model.json`` and
every file of an export hold a few images with PyTorch's answers. An image is a few random values, interpolated, so that
L_F and with it the steps differ widely. Only those that are done after at most ``_MOST_STEPS`` steps are taken, for
there rounding does not grow; one comes twice, in a batch with others.
"""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense

Array = NDArray[Any]

_SIDES = (2, 4, 7, 14, 28)  # random values along an image's side; the more, the larger L_F
_CONTRASTS = (0.3, 1.0)
_MOST_STEPS = 32
_SAMPLE = 128  # values of the noise and of the smoothed images that are kept, for each image
_IDS = (0, 2**40 + 1, 2**33 + 5)  # of one and of several 16-bit words
_SEED = 2**41 + 9
_MOST_ROWS = 16
_ROUNDING = 1e-5  # of pixels, where sigma is smaller still


class Answered(Protocol):
    """What an engine answers."""

    @property
    def probabilities(self) -> Array:
        """(N, classes) float32."""

    @property
    def steps(self) -> Array:
        """(N,) int32."""

    @property
    def smoothed(self) -> Array:
        """(N, C, H, W) float32."""


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from PyTorch.

    Attributes:
        steps: share of an image's steps; where it is not 0, one step more.
        probabilities: largest difference.
        smoothed: root mean square over an image, in sigmas. Other noise is 0.8 apart.
    """

    steps: float
    probabilities: float
    smoothed: float


EXACT = Tolerance(steps=0, probabilities=1e-3, smoothed=0.01)  # float32, as PyTorch
REDUCED = Tolerance(steps=0.1, probabilities=0.05, smoothed=0.1)  # 16 bits, or TF32, in some part


@dataclass(frozen=True)
class KnownAnswers:
    """N images and what is known of them.

    Attributes:
        images: (N, C, H, W) float32.
        ids: (N,) int64.
        seed: of the noise.
        steps: (N,) int32.
        probabilities: (N, classes) float32.
        smoothed: (N, K) float32, every ``every``-th value.
        every: see there.
    """

    images: Array
    ids: Array
    seed: int
    steps: Array
    probabilities: Array
    smoothed: Array
    every: int

    @classmethod
    def read(cls, description: dict[str, Any]) -> "KnownAnswers":
        """From what the exporter wrote.

        Raises:
            ValueError: if there are none, or they are damaged.
        """
        with _reading():
            known, shape = description["known_answers"], tuple(description["image"]["shape"])
            rows, classes, every = len(known["ids"]), len(description["classes"]), int(known["every"])
            if not (1 <= rows <= _MOST_ROWS and every > 0):
                raise ValueError(f"{rows} rows, every {every}")
            sampled = -(-shape[0] * shape[1] * shape[2] // every)
            return cls(
                _pixels(known["images"], (rows, *shape)),
                _numbers(known["ids"], np.int64, (rows,)),
                int(known["seed"]),
                _numbers(known["steps"], np.int32, (rows,)),
                _numbers(known["probabilities"], np.float32, (rows, classes)),
                _numbers(known["smoothed"], np.float32, (rows, sampled)),
                every,
            )

    def check(self, answered: Answered, tolerance: Tolerance, *, sigma: float) -> None:
        """Hold an engine's answers against them.

        Raises:
            ValueError: naming the first that differs.
        """
        expected = self.steps.astype(np.int64)
        allowed = np.floor(expected * tolerance.steps) + (tolerance.steps > 0)
        if not (np.abs(answered.steps - expected) <= allowed).all():
            raise _refusal(f"steps {answered.steps.tolist()} for {expected.tolist()}")
        sampled = answered.smoothed.reshape(len(expected), -1)[:, :: self.every]
        apart = float(np.sqrt(np.square(sampled - self.smoothed).mean(1)).max())
        if not apart <= max(tolerance.smoothed * sigma, _ROUNDING):
            raise _refusal(f"smoothed images {apart / sigma:.2g} sigma apart, more than {tolerance.smoothed}")
        check_probabilities(answered.probabilities, self.probabilities, tolerance)


def check_classifier(description: dict[str, Any], classify: Callable[[Array], Array], *, exact: bool) -> None:
    """Hold the classifier of an export without a defense against what it is known to answer.

    Args:
        description: what the exporter wrote.
        classify: (N, C, H, W) float32 -> (N, classes).
        exact: whether it computes float32 in float32.

    Raises:
        ValueError: if it answers otherwise, or nothing is known.
    """
    with _reading():
        known, shape = description["known_answers"], tuple(description["image"]["shape"])
        images = _pixels(known["images"], (len(_IDS), *shape))
        expected = _numbers(known["probabilities"], np.float32, (len(_IDS), len(description["classes"])))
    check_probabilities(classify(images), expected, tolerance_of(description, exact=exact))


def tolerance_of(description: dict[str, Any], *, exact: bool) -> Tolerance:
    """What an engine is held to that computes float32 in float32, or not, by the type of the networks in its files."""
    return EXACT if exact and description.get("dtype") == "float32" else REDUCED


def check_probabilities(answered: Array, expected: Array, tolerance: Tolerance) -> None:
    """Of a classifier alone.

    Raises:
        ValueError: if they differ by more than the tolerance; NaN does.
    """
    apart = float(np.abs(answered - expected).max())
    if not apart <= tolerance.probabilities:
        raise _refusal(f"probabilities {apart:.2g} apart, more than {tolerance.probabilities}")


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:  # binascii's is a ValueError
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise ValueError(f"the export holds no known answers ({reason}): export it again") from error


def _refusal(what: str) -> ValueError:
    return ValueError(
        f"this engine does not give the answers that the export is known to give: {what}. Do not serve it: it computes "
        "otherwise than PyTorch, such as in fewer bits; try another engine, provider or precision"
    )


@torch.no_grad()
def make_known_answers(
    checkpoint: Checkpoint, shape: tuple[int, int, int], *, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """What goes into ``model.json`` under ``known_answers``; JSON types alone.

    Args:
        checkpoint: what is exported, on the CPU.
        shape: (C, H, W) of an image.
        dtype: of the convolutions in the loop.
    """
    images = _candidates(shape)
    if checkpoint.defense is None:
        return _written_plain(images[: len(_IDS)], checkpoint.model)
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False, seed=_SEED, dtype=dtype)
    images = images[_chosen(defense, images)]
    rows = [*range(len(images)), 0]  # one comes twice
    ids = torch.tensor(_IDS[: len(images)])
    answers = defense.defend(images, ids=ids)
    noise = torch.stack([defense.noise(ids, loop, images) for loop in range(defense.outer_loops)], dim=1)
    every = max(1, images[0].numel() // _SAMPLE)
    return {
        "images": _base64(images[rows]),
        "ids": ids[rows].tolist(),
        "seed": _SEED,
        "every": every,
        "noise": _listed(noise[rows].flatten(2)[..., ::every]),
        "steps": answers.steps[rows].tolist(),
        "probabilities": _listed(answers.logits[rows].exp()),
        "smoothed": _listed(answers.images[rows].flatten(1)[:, ::every]),
    }


def _written_plain(images: Tensor, model: nn.Module) -> dict[str, Any]:
    return {"images": _base64(images), "probabilities": _listed(model(images).softmax(1))}


def _candidates(shape: tuple[int, int, int]) -> Tensor:
    """Images from smooth to rough, of 256 levels."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for side in _SIDES:
        for contrast in _CONTRASTS:
            values = torch.rand(1, shape[0], side, side, generator=generator)
            made.append(0.5 + contrast * (nn.functional.interpolate(values, size=shape[1:], mode="bilinear") - 0.5))
    return (torch.cat(made) * 255).round() / 255


def _chosen(defense: ActiveDefense, images: Tensor) -> list[int]:
    """Which of them: the fewest steps, the most and one between, of those that are soon done; where none is, one."""
    most, defense.max_steps = defense.max_steps, min(defense.max_steps, _MOST_STEPS)
    answers = defense.defend(images, ids=torch.full((len(images),), _IDS[0]))
    defense.max_steps = most
    done = [i for i in answers.steps.argsort(stable=True).tolist() if answers.converged[i]]
    if not done:
        return [int(answers.loss.argmin())]
    return sorted({done[0], done[len(done) // 2], done[-1]})


def _base64(images: Tensor) -> str:
    return base64.b64encode((images * 255).round().to(torch.uint8).numpy().tobytes()).decode("ascii")


def _listed(values: Tensor) -> Any:
    """Nested lists of numbers that read back as the same float32."""
    return [_listed(row) for row in values] if values.ndim else float(f"{float(values):.9g}")


def _pixels(text: str, shape: tuple[int, ...]) -> Array:
    levels = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    return levels.reshape(shape).astype(np.float32) / 255


def _numbers(values: Any, dtype: Any, shape: tuple[int, ...]) -> Array:
    numbers = np.asarray(values, dtype)
    if numbers.shape != shape:
        raise ValueError(f"{numbers.shape} numbers for {shape}")
    return numbers
