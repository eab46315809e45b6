"""Runs an exported classifier: one call, whatever engine is behind it, as the defense in PyTorch has."""

import os
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdef._validate import check_count
from fastdef.defense import uniform_noise
from fastdef.export.arithmetic_noise import limbs
from fastdef.export.known_answers import KnownAnswers, tolerance_of
from fastdef.export.manifest import MANIFEST, read, read_description
from fastdef.export.opening import CPU, file_for, open_session
from fastdef.export.sessions import InferenceSession, Provider
from fastdef.runtime import GraphedSlots, Program, Request, Session, Slots, Stats, bucket_sizes, cpu_chunk, run_batch

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
        return EngineResult(*(output.numpy(force=True) for output in _open(self._session).run(given)))


class DrivenEngine(Engine):
    """``step`` and ``classifier``, driven by the slots and the refill of the runtime in PyTorch.

    The file has a few masked steps and no control flow, so that nothing waits for the host inside it, and an image
    that is done leaves for the next.

    Args:
        step: runs ``step``.
        classifier: runs ``classifier``.
        description: the exporter's.
        slots: images under way at once.
    """

    def __init__(
        self,
        step: InferenceSession,
        classifier: InferenceSession,
        description: dict[str, Any],
        *,
        slots: int,
    ) -> None:
        super().__init__(description, exact=step.exact and classifier.exact)
        self._opened: tuple[_SlotsOfFile, InferenceSession] | None = (_SlotsOfFile(step, slots=slots), classifier)
        self._device = torch.device(step.device)

    def close(self) -> None:
        """Let go of the engines' memory."""
        self._opened = None

    def _answer(self, images: Array, ids: Array, seed: int) -> EngineResult:
        pairs = zip(torch.from_numpy(images), ids.tolist(), strict=True)
        batch = run_batch(self._session(seed), (Request(image, noise_id) for image, noise_id in pairs))
        return EngineResult(
            probabilities=batch.logits.exp().numpy(force=True),
            steps=batch.steps.to(torch.int32).numpy(),
            converged=batch.converged.numpy(),
            loss=batch.loss.numpy(),
            smoothed=batch.images.numpy(force=True),
        )

    def _session(self, seed: int) -> Session:
        slots, classifier = _open(self._opened)
        defense = self.description["defense"]

        def noise(ids: Tensor, loop: int, like: Tensor) -> Tensor:
            ids = ids.to(like.device)
            return uniform_noise(ids, torch.full_like(ids, loop), like.shape[1:], seed=seed, sigma=defense["sigma"])

        program = Program(
            place=lambda values: values.to(self._device),
            noise=noise,
            classify=lambda smoothed: classifier.run({classifier.inputs[0]: smoothed})[0].clamp_min(1e-38).log(),
            next_id=lambda: 0,  # every request has one
            delta=defense["delta"],
            outer_loops=defense["outer_loops"],
            max_steps=defense["max_steps"],
            classify_batch=slots.most,
        )
        return Session(slots, program, Stats())


class _SlotsOfFile:
    """Slots that a file advances, made when they are asked for: see :class:`fastdef.runtime.Pool`."""

    def __init__(self, step: InferenceSession, *, slots: int) -> None:
        self.most = slots
        self._step = step
        self._idle: dict[int, list[Slots]] = defaultdict(list)

    @property
    def sizes(self) -> list[int]:
        return bucket_sizes(self.most)

    def acquire(self, size: int, like: Tensor) -> Slots:
        images = like.new_zeros((size, *like.shape))
        if self._step.replayable:
            if self._idle[size]:
                return self._idle[size].pop()
            return GraphedSlots(self._advance, images, layout=torch.contiguous_format)
        chunk = cpu_chunk(size) if like.device.type == "cpu" else None
        return Slots(self._advance, images, chunk=chunk, layout=torch.contiguous_format)

    def release(self, slots: Slots) -> None:
        """Kept where they hold a graph."""
        if self._step.replayable:
            self._idle[slots.size].append(slots)

    def halve(self) -> None:
        self.most //= 2
        self._idle.clear()
        warnings.warn(f"out of memory: going on with {self.most} slots", RuntimeWarning, stacklevel=2)

    def _advance(self, *state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images, steps, loss, running = self._step.run(dict(zip(self._step.inputs, state, strict=True)))
        return images, steps, loss, running


def load_engine(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[Provider] = CPU,
    driven: bool = False,
    slots: int = 64,
    cuda_graphs: bool = False,
) -> Engine:
    """Open an export, and see that it gives the answers it is known to give.

    Args:
        path: the folder that ``fastdef export`` wrote, or in it ``defended.onnx``, ``.engine``, ``.xml`` or ``.pt2``.
        providers: of ONNX Runtime, names or pairs of a name and options; the first that can run a part runs it. Alone:
            "TensorRT" runs the ``.engine`` files, "OpenVINO" the ``.xml`` or else the ``.onnx`` files, "PT2" the
            ``.pt2`` packages, which are programs: load none that you do not trust.
        driven: run ``step`` and ``classifier``, many images at once and each as long as it needs, in place of the
            whole in one file: faster, and what a server should take.
        slots: images under way at once, where it is driven.
        cuda_graphs: of a driven step in TensorRT or on the CUDAExecutionProvider; not run on a GPU yet.

    Raises:
        ValueError: if there is no such file, the folder's export was cut short, the file is not the one that
            ``model.json`` beside it names, it is of another's making, cannot run here or would run elsewhere than on
            the providers, or does not give the answers that the export is known to give.
    """
    place = Path(path)
    check_count(slots, name="slots", where="load_engine")
    if not place.exists():
        raise ValueError(f"load_engine needs what `fastdef export` wrote, and there is no {place}")
    if cuda_graphs and not driven:
        raise ValueError("load_engine has cuda_graphs around the step of a driven export: pass driven=True")
    files = _files(place, providers, driven=driven)
    sessions = [
        open_session(file, providers, spinning=not driven, graphed=cuda_graphs and file is files[0]) for file in files
    ]
    expected = ["images", "steps", "limits", "delta"] if driven else ["images", "ids", "seed"]
    if sessions[0].description is None or sessions[0].inputs != expected:
        raise ValueError(
            f"load_engine needs a {files[0].name} of `fastdef export`, got {place} with {sessions[0].inputs}"
        )
    description = read_description(sessions[0].description, source=files[0])
    engine = (
        DrivenEngine(sessions[0], sessions[1], description, slots=slots)
        if driven
        else WholeEngine(sessions[0], description)
    )
    engine.verify()
    return engine


def _files(place: Path, providers: Sequence[Provider], *, driven: bool) -> list[Path]:
    """Those to open, which are there."""
    if place.is_dir():
        read(place / MANIFEST)  # some of the files are there before an export is whole
    folder = place if place.is_dir() else place.parent
    names = ["step", "classifier"] if driven else ["defended"]
    files = [place] if place.suffix and not driven else [file_for(folder, name, providers) for name in names]
    for file in files:
        if not file.is_file():
            raise ValueError(f"load_engine needs a {file.name} that `fastdef export` wrote, and there is no {file}")
    return files


def _joined(parts: Sequence[EngineResult]) -> EngineResult:
    names = [field.name for field in fields(EngineResult)]
    return EngineResult(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _open(session: Any) -> Any:
    if session is None:
        raise ValueError("the engine was closed; load it again")
    return session
