"""What Triton Inference Server's Python back end runs: the driven engine, with noise that no client chooses.

``write_repository`` writes a ``model.py`` that imports this. Tensors go by DLPack: the back end's own numpy bridge is
compiled against numpy 1, and hands over empty arrays where numpy 2 is installed.
"""

import importlib
import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

from fastdef.export.engine import load_engine

EXPORT = "export"  # the folder beside model.py


class TritonPythonModel:
    """The class that the back end looks for; its methods are the back end's.

    A request that is no batch of finite images in [0, 1] is answered with an error, and those it was joined with are
    answered as they would be without it.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the export; the server does not offer the model where it does not give the known answers.

        Args:
            args: the server's: ``model_config`` as JSON, ``model_repository`` and ``model_version``.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"] / EXPORT
        provider = config["parameters"]["provider"]["string_value"]
        self._utilities: Any = importlib.import_module("triton_python_backend_utils")
        self._engine = load_engine(folder, providers=[provider], driven=True, slots=config["max_batch_size"])
        self._seed = secrets.randbits(63)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests that the server joined, with an id from the system's randomness for each image."""
        batches = [self._images(request) for request in requests]
        faults = [_fault(images) for images in batches]
        valid = [images for images, fault in zip(batches, faults, strict=True) if fault is None]
        answers = iter(self._answer(valid) if valid else [])
        return [self._refused(fault) if fault else self._answered(*next(answers)) for fault in faults]

    def finalize(self) -> None:
        """Let go of the engine's memory."""
        self._engine.close()

    def _images(self, request: Any) -> Tensor:
        tensor = self._utilities.get_input_tensor_by_name(request, "images")
        return torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).cpu()

    def _answer(self, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        sizes = [len(images) for images in batches]
        ids = np.array([secrets.randbits(63) for _ in range(sum(sizes))], np.int64)
        result = self._engine(torch.cat(batches).numpy(), ids=ids, seed=self._seed)
        probabilities = torch.from_numpy(result.probabilities).split(sizes)
        converged = torch.from_numpy(result.converged).split(sizes)
        return list(zip(probabilities, converged, strict=True))

    def _answered(self, probabilities: Tensor, converged: Tensor) -> Any:
        tensor = self._utilities.Tensor.from_dlpack
        # A copy each, for the server keeps what it is given.
        outputs = {"probabilities": probabilities.clone(), "converged": converged[:, None].clone()}
        return self._utilities.InferenceResponse([tensor(name, value) for name, value in outputs.items()])

    def _refused(self, fault: str) -> Any:
        error = self._utilities.TritonError(fault, self._utilities.TritonError.INVALID_ARG)
        return self._utilities.InferenceResponse(error=error)


def _fault(images: Tensor) -> str | None:
    """The server has checked shape and type."""
    if images.isfinite().all() and images.min() >= 0 and images.max() <= 1:
        return None
    return "the classifier needs finite images in [0, 1], got others"
