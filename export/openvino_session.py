"""One file of an export in OpenVINO."""

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef._validate import check_installed
from fastdef.export.manifest import MANIFEST, MASKED, name_files, read, sha256, verified
from fastdef.io import atomic_write

_PRECISION = "INFERENCE_PRECISION_HINT"


class OpenVINOSession:
    """An ONNX file, or OpenVINO's own pair of ``.xml`` and ``.bin``, in OpenVINO.

    It computes in float32 unless the options say otherwise: left alone, OpenVINO takes bfloat16 where the CPU has it,
    which the noise does not survive.

    Args:
        path: the ``.onnx`` or ``.xml`` file.
        options: OpenVINO's properties, such as ``{"INFERENCE_PRECISION_HINT": "bf16"}``, and ``DEVICE``, "CPU" unless
            given.

    Raises:
        ValueError: if OpenVINO is not installed, the file is not the one ``model.json`` names, or OpenVINO refuses it
            or an option; and from a run that fails.
    """

    def __init__(self, path: Path, options: Mapping[str, Any] | None = None) -> None:
        check_installed("openvino", extra="openvino", where="OpenVINO")
        import openvino

        config = {_PRECISION: "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), **(options or {})}
        device = config.pop("DEVICE", "CPU")
        content = verified(path)
        weights = verified(path.with_suffix(".bin")) if path.suffix == ".xml" else None
        self._path = path
        with _refusing(self._path):
            core = openvino.Core()
            if weights is None:
                model = core.read_model(io.BytesIO(content))
            else:
                model = core.read_model(model=content, weights=weights)
            self._model = core.compile_model(model, device, config)
            self.description = _described(model)
        self.inputs = [given.get_any_name() for given in model.inputs]
        self.exact = str(config[_PRECISION]) == "f32"
        self.replayable = False
        self.largest_batch: int | None = None
        self.device = "cpu"

    def run(self, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """See :class:`InferenceSession`."""
        with _refusing(self._path):
            answered = self._model({name: value.numpy() for name, value in given.items()})
        return tuple(torch.from_numpy(answered[output]) for output in self._model.outputs)


def export_openvino(folder: Path) -> list[Path]:
    """Write OpenVINO's ``.xml`` and ``.bin`` of each file of an export beside it, float32 as it is.

    Raises:
        ValueError: if OpenVINO is not installed, the folder holds no export, or OpenVINO does not take a file.
    """
    check_installed("openvino", extra="openvino", where="OpenVINO")
    files = read(folder / MANIFEST)["files"]
    written: dict[Path, dict[str, Any]] = {}
    for source in (folder / name for name in files if name.endswith(".onnx") and not name.endswith(MASKED)):
        facts = {key: files[source.name][key] for key in ("inputs", "outputs") if key in files[source.name]}
        for path, content in _converted(source).items():
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            written[path] = {**facts, "of": source.name, "sha256": sha256(content)}
    name_files(folder / MANIFEST, {path.name: facts for path, facts in written.items()})
    return list(written)


def _converted(source: Path) -> dict[Path, bytes]:
    import openvino

    content = verified(source)
    with tempfile.TemporaryDirectory() as made, _refusing(source):
        xml = Path(made) / f"{source.stem}.xml"
        openvino.save_model(openvino.Core().read_model(io.BytesIO(content)), xml, compress_to_fp16=False)
        return {source.with_name(path.name): path.read_bytes() for path in (xml, xml.with_suffix(".bin"))}


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[-300:]  # it begins with its own sources
        raise ValueError(f"OpenVINO refuses {path}: {reason}") from error


def _described(model: Any) -> str | None:
    """The exporter's description, which OpenVINO keeps among what the file told of its framework."""
    if not model.has_rt_info(["framework", "fastdef"]):
        return None
    return str(model.get_rt_info(["framework", "fastdef"]).astype(str))
