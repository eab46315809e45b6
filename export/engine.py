"""Runs an exported file: ONNX Runtime behind the same call as the defense in PyTorch."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Result:
    """What ``defended.onnx`` returns for N images.

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


class Engine:
    """A defended classifier in ONNX Runtime; a context manager.

    Attributes:
        description: what the exporter wrote into the file: architecture, classes, defense, versions.
    """

    def __init__(self, path: Path, providers: Sequence[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of initialisers that a Loop's body does not use
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # onnxruntime's own exceptions have no common base below this
            raise ValueError(f"cannot load {path}: {' '.join(str(error).split())[:300]}") from error
        written = self._session.get_modelmeta().custom_metadata_map.get("fastdef")
        self._inputs = [given.name for given in self._session.get_inputs()]
        if written is None or self._inputs != ["images", "ids", "seed"]:
            raise ValueError(f"load_engine needs a defended.onnx of `fastdef export`, got {path} with {self._inputs}")
        self.description: dict[str, Any] = json.loads(written)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session

    def __call__(self, images: Array, *, ids: Array | None = None, seed: int = 0) -> Result:
        """Defend a batch.

        Args:
            images: (N, C, H, W) float32 in [0, 1].
            ids: (N,) int64 what each image's noise hangs on; 0 to N - 1 if not given.
            seed: of the noise: the same gives the noise that :class:`fastdef.ActiveDefense` adds.

        Raises:
            ValueError: for images or ids that are not that.
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
        if ids.shape != (len(images),) or ids.dtype != np.int64:
            raise ValueError(f"the engine needs ({len(images)},) int64 ids, got {ids.shape} {ids.dtype}")
        return Result(*self._session.run(None, {"images": images, "ids": ids, "seed": np.array(seed)}))


def load_engine(path: str | os.PathLike[str], *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Engine:
    """Open ``defended.onnx``.

    Args:
        path: the file, or the folder it lies in.
        providers: of ONNX Runtime, the first that can run a part runs it.

    Raises:
        ValueError: if it is no such file, or a provider is not to be had here.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    missing = [provider for provider in providers if provider not in there]
    if missing:
        raise ValueError(f"load_engine needs providers among {', '.join(there)}, got {', '.join(missing)}")
    file = Path(path)
    file = file / "defended.onnx" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"load_engine needs a defended.onnx, and there is no {file}")
    return Engine(file, providers)
