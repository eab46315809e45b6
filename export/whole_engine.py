"""An exported classifier as one call, whatever engine is behind it, and the one that is a single file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdef.export.arithmetic_noise import limbs
from fastdef.export.known_answers import KnownAnswers, tolerance_of
from fastdef.export.sessions import InferenceSession

Array = NDArray[Any]


@dataclass(frozen=True)
class EngineResult:
    """What an engine answers for N images.

    Attributes:
        probabilities: (N, classes) float32.
        steps: (N,) int32, of all outer loops together.
        converged: (N,) bool.
        loss: (N,) float32.
        smoothed: (N, C, H, W) float32.
    """

    probabilities: Array
    steps: Array
    converged: Array
    loss: Array
    smoothed: Array


class Engine(ABC):
    """A defended classifier; a context manager.

    Attributes:
        description: what the exporter wrote: architecture, classes, defense, versions.
    """

    def __init__(self, description: dict[str, Any], *, exact: bool, largest_batch: int | None = None) -> None:
        self.description = description
        self._exact = exact  # float32 is computed in float32
        self._largest_batch = largest_batch

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, images: Array, *, ids: Array | None = None, seed: int = 0) -> EngineResult:
        """Defend a batch.

        Args:
            images: (N, C, H, W) float32 in [0, 1].
            ids: (N,) int64 from 0 up, what each image's noise hangs on; 0 to N - 1 if not given.
            seed: of the noise, from 0 up: the same gives the noise that :class:`fastdef.ActiveDefense` adds.

        Raises:
            ValueError: for images, ids or a seed that are not that.
        """
        shape = tuple(self.description["image"]["shape"])
        if images.ndim != 4 or images.shape[1:] != shape or len(images) == 0 or images.dtype != np.float32:
            raise ValueError(
                f"the engine needs float32 images of shape (N, {', '.join(map(str, shape))}), "
                f"got {images.shape} {images.dtype}"
            )
        if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
            raise ValueError("the engine needs finite images in [0, 1], got others")
        ids = np.arange(len(images)) if ids is None else ids
        if ids.shape != (len(images),) or ids.dtype != np.int64 or ids.min() < 0:
            raise ValueError(f"the engine needs ({len(images)},) int64 ids from 0 up, got {ids.shape} {ids.dtype}")
        if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise ValueError(f"the engine needs a seed from 0 up, of 63 bits, got {seed}")
        return self._answer(images, ids, seed)

    def verify(self) -> None:
        """Answer the images whose answers the export holds; :func:`load_engine` has done so.

        Raises:
            ValueError: if the answers are others, naming the first that differs; or the export holds none.
        """
        known = KnownAnswers.read(self.description)
        at_once = self._largest_batch or len(known.ids)
        parts = [
            self(known.images[i : i + at_once], ids=known.ids[i : i + at_once], seed=known.seed)
            for i in range(0, len(known.ids), at_once)
        ]
        tolerance = tolerance_of(self.description, exact=self._exact)
        known.check(_joined(parts), tolerance, sigma=self.description["defense"]["sigma"])

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine's memory."""

    @abstractmethod
    def _answer(self, images: Array, ids: Array, seed: int) -> EngineResult: ...


class WholeEngine(Engine):
    """``defended``: everything inside the file, loop and all."""

    def __init__(self, session: InferenceSession, description: dict[str, Any]) -> None:
        super().__init__(description, exact=session.exact, largest_batch=session.largest_batch)
        self._session: InferenceSession | None = session

    def close(self) -> None:
        """Let go of the engine's memory."""
        self._session = None

    def _answer(self, images: Array, ids: Array, seed: int) -> EngineResult:
        seeds = torch.full((len(images),), seed)
        given = {"images": torch.from_numpy(images), "ids": limbs(torch.from_numpy(ids)), "seed": limbs(seeds)}
        return EngineResult(*(output.numpy(force=True) for output in opened(self._session).run(given)))


def _joined(parts: Sequence[EngineResult]) -> EngineResult:
    names = [field.name for field in fields(EngineResult)]
    return EngineResult(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def opened(session: Any) -> Any:
    """The session of an engine that is not closed.

    Raises:
        ValueError: for one that is.
    """
    if session is None:
        raise ValueError("the engine was closed; load it again")
    return session
