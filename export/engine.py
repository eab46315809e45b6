"""Runs an exported classifier: one call, whatever engine is behind it, as the defense in PyTorch has."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdef._validate import check_count
from fastdef.defense.noise import uniform_noise
from fastdef.defense.pipeline import Pipeline
from fastdef.defense.requests import Request
from fastdef.export.manifest import MANIFEST, read, read_description
from fastdef.export.sessions import OnnxSession, Session, TensorRTSession
from fastdef.runtime.cache import bucket_sizes, cpu_chunk
from fastdef.runtime.scheduler import Tally, run
from fastdef.runtime.slots import Slots

Array = NDArray[Any]
CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class Result:
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

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, images: Array, *, ids: Array | None = None, seed: int = 0) -> Result:
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

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine's memory."""

    @abstractmethod
    def _answer(self, images: Array, ids: Array, seed: int) -> Result: ...


class WholeEngine(Engine):
    """``defended``: everything inside the file, loop and all."""

    def __init__(self, session: Session, description: dict[str, Any]) -> None:
        super().__init__(description)
        self._session: Session | None = session

    def close(self) -> None:
        """Let go of the engine's memory."""
        self._session = None

    def _answer(self, images: Array, ids: Array, seed: int) -> Result:
        seeds = np.full(len(images), seed)
        given = {"images": torch.from_numpy(images), "ids": torch.from_numpy(ids), "seed": torch.from_numpy(seeds)}
        return Result(*(output.numpy(force=True) for output in _open(self._session).run(given)))


class DrivenEngine(Engine):
    """``step`` and ``classifier``, driven by the slots and the refill of the runtime in PyTorch.

    The file has a few masked steps and no control flow, so that nothing waits for the host inside it, and an image
    that is done leaves for the next.

    Args:
        step: runs ``step``.
        classifier: runs ``classifier``.
        description: the exporter's.
        slots: images under way at once.
        device: where the sessions take their tensors.
    """

    def __init__(
        self, step: Session, classifier: Session, description: dict[str, Any], *, slots: int, device: str
    ) -> None:
        super().__init__(description)
        self._sessions: tuple[Session, Session] | None = (step, classifier)
        self._slots = slots
        self._device = torch.device(device)

    def close(self) -> None:
        """Let go of the engines' memory."""
        self._sessions = None

    def _answer(self, images: Array, ids: Array, seed: int) -> Result:
        step, classifier = _open(self._sessions)
        defense = self.description["defense"]
        shape = images.shape[1:]

        def noisy(requests: list[Request], loop: int) -> Tensor:
            numbers = torch.tensor([request.id for request in requests], device=self._device)
            noise = uniform_noise(numbers, torch.full_like(numbers, loop), shape, seed=seed, sigma=defense["sigma"])
            return torch.stack([request.image for request in requests]) + noise

        def advance(*state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            stepped, steps, loss, running = step.run(dict(zip(step.inputs, state, strict=True)))
            return stepped, steps, loss, running

        def lease(size: int) -> Slots:
            empty = torch.zeros((size, *shape), device=self._device)
            slots = Slots(
                advance,
                empty,
                chunk=cpu_chunk(size) if self._device.type == "cpu" else None,
                layout=torch.contiguous_format,
            )
            slots.clear(defense["delta"])
            return slots

        pipeline = Pipeline(
            self._requests(images, ids),
            noisy=noisy,
            classify=lambda smoothed: classifier.run({classifier.inputs[0]: smoothed})[0].clamp_min(1e-38).log(),
            delta=defense["delta"],
            outer_loops=defense["outer_loops"],
            batch=self._slots,
            window=8 * self._slots,
        )
        sizes = bucket_sizes(self._slots)
        answers = list(pipeline.answers(run(pipeline.starts(), lease, sizes, Tally())))
        return Result(
            probabilities=torch.stack([answer.logits.exp() for answer in answers]).numpy(force=True),
            steps=np.array([answer.steps for answer in answers], dtype=np.int32),
            converged=np.array([answer.converged for answer in answers]),
            loss=np.array([answer.loss for answer in answers], dtype=np.float32),
            smoothed=torch.stack([answer.image for answer in answers]).numpy(force=True),
        )

    def _requests(self, images: Array, ids: Array) -> Iterator[Request]:
        limit = self.description["defense"]["max_steps"]
        for image, id in zip(torch.from_numpy(images).to(self._device), ids.tolist(), strict=True):
            yield Request(image, id, limit)


def load_engine(
    path: str | os.PathLike[str], *, providers: Sequence[str] = CPU, driven: bool = False, slots: int = 64
) -> Engine:
    """Open an export.

    Args:
        path: the folder that ``fastdef export`` wrote, or in it ``defended.onnx`` or ``defended.engine``.
        providers: of ONNX Runtime, the first that can run a part runs it; "TensorRT" runs the ``.engine`` files.
        driven: run ``step`` and ``classifier``, many images at once and each as long as it needs, in place of the
            whole in one file: faster, and what a server should take.
        slots: images under way at once, where it is driven.

    Raises:
        ValueError: if there is no such file, the folder's export was cut short, the file is not the one that
            ``model.json`` beside it names, it is of another's making, or cannot run here.
    """
    place = Path(path)
    check_count(slots, name="slots", where="load_engine")
    if not providers or not place.exists():
        raise ValueError(f"load_engine needs a provider and what `fastdef export` wrote, got {providers} and {place}")
    folder, ending = (place, "") if place.is_dir() else (place.parent, place.suffix)
    engines = ending == ".engine" or list(providers) == ["TensorRT"]
    names = ["step", "classifier"] if driven else ["defended"]
    files = [folder / f"{name}{'.engine' if engines else '.onnx'}" for name in names]
    if ending and not driven:
        files = [place]
    if place.is_dir():
        read(place / MANIFEST)  # some of the files are there before an export is whole
    for file in files:
        if not file.is_file():
            raise ValueError(f"load_engine needs a {file.name} that `fastdef export` wrote, and there is no {file}")
    sessions: list[Session] = [TensorRTSession(file) if engines else OnnxSession(file, providers) for file in files]
    expected = ["images", "steps", "limits", "delta"] if driven else ["images", "ids", "seed"]
    if sessions[0].description is None or sessions[0].inputs != expected:
        raise ValueError(
            f"load_engine needs a {files[0].name} of `fastdef export`, got {place} with {sessions[0].inputs}"
        )
    description = read_description(sessions[0].description, source=files[0])
    if driven:
        device = "cuda" if engines or providers[0] != CPU[0] else "cpu"
        return DrivenEngine(sessions[0], sessions[1], description, slots=slots, device=device)
    return WholeEngine(sessions[0], description)


def _open(session: Any) -> Any:
    if session is None:
        raise ValueError("the engine was closed; load it again")
    return session
