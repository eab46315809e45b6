"""One file of an export in OpenVINO."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef._validate import check_installed
from fastdef.export.manifest import verified

_PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVINOSession:
    """An ONNX file, or OpenVINO's own pair of ``.xml`` and ``.bin``, in OpenVINO.

    It computes in float32 unless the options say otherwise: left alone, OpenVINO takes bfloat16 where the CPU has it,
    which the noise does not survive.

    Args:
        path: the ``.onnx`` or ``.xml`` file.
        options: OpenVINO's properties, such as ``{"INFERENCE_PRECISION_HINT": "bf16"}``; ``DEVICE`` is "CPU" unless given.

    Raises:
        ValueError: if OpenVINO is not installed, the file is not the one ``model.json`` names, or OpenVINO refuses it or
            an option; and from a run that fails.
    """

    def __init__(self, path: Path, options: Mapping[str, Any] | None = None) -> None:
        check_installed("openvino", extra="openvino", where="OpenVINO")
        import openvino

        config = {_PRECISION: "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), **(options or {})}
        device = config.pop("DEVICE", "CPU")
        content = verified(path)
        weights = verified(path.with_suffix(".bin")) if path.suffix == ".xml" else None
        self._path = path
        with self._refusing():
            core = openvino.Core()
            if weights is None:
                model = core.read_model(io.BytesIO(content))
            else:
                model = core.read_model(model=content, weights=weights)
            self._model = core.compile_model(model, device, config)
            self.description = _described(model)
        self.inputs = [given.get_any_name() for given in model.inputs]
        self.exact = str(config[_PRECISION]) == "f32"
        self.largest_batch: int | None = None
        self.device = "cpu"

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())[-300:]  # it begins with its own sources
            raise ValueError(f"OpenVINO refuses {self._path}: {reason}") from error

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See :class:`InferenceSession`."""
        with self._refusing():
            answered = self._model({name: value.numpy() for name, value in given.items()})
        return tuple(torch.from_numpy(answered[output]) for output in self._model.outputs)


def write_openvino(source: Path, target: Path) -> None:
    """Write an ONNX file as OpenVINO's ``.xml`` and the ``.bin`` beside it, float32 as it is.

    Raises:
        ValueError: if OpenVINO is not installed, or does not take the file.
    """
    check_installed("openvino", extra="openvino", where="OpenVINO")
    import openvino

    content = verified(source)
    try:
        model = openvino.Core().read_model(io.BytesIO(content))
        openvino.save_model(model, target, compress_to_fp16=False)
    except RuntimeError as error:
        raise ValueError(f"OpenVINO refuses {source}: {' '.join(str(error).split())[-300:]}") from error


def _described(model: Any) -> str | None:
    """The exporter's description, which OpenVINO keeps among what the file told of its framework."""
    if not model.has_rt_info(["framework", "fastdef"]):
        return None
    return str(model.get_rt_info(["framework", "fastdef"]).astype(str))
