"""The classifier in 16 and in 8 bits, and what that costs in accuracy on the same images."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdef.checkpoint import Checkpoint
from fastdef.export.files import Artefact, serialise
from fastdef.export.manifest import MANIFEST, name_files, sha256, verified
from fastdef.export.modules import InType, Probabilities
from fastdef.export.opening import CPU
from fastdef.export.sessions import OnnxSession
from fastdef.io import atomic_write

HALF, EIGHT = "classifier.fp16.onnx", "classifier.int8.onnx"
_AT_ONCE = 64


@dataclass(frozen=True)
class Cost:
    """Accuracy of each form of the classifier on the same images.

    Attributes:
        images: how many.
        accuracy: by file.
        file_bytes: by file.
    """

    images: int
    accuracy: dict[str, float]
    file_bytes: dict[str, int]

    def __str__(self) -> str:
        forms = (
            f"{name} {value:.1%} ({self.file_bytes[name] / 2**20:.1f} MiB)" for name, value in self.accuracy.items()
        )
        return f"accuracy on {self.images} images: " + ", ".join(forms)


def export_small(checkpoint: Checkpoint, folder: Path, calibration: Tensor) -> list[Path]:
    """Write ``classifier.fp16.onnx`` and ``classifier.int8.onnx`` beside ``classifier.onnx``.

    int8 is ONNX Runtime's static quantisation: weights by channel, activations by the range that they have on
    ``calibration``, as QuantizeLinear and DequantizeLinear pairs, which TensorRT takes too.

    Args:
        checkpoint: what was exported.
        folder: where to.
        calibration: (N, C, H, W) clean images that nothing will be reported on.

    Raises:
        ValueError: if there is no export, its ``classifier.onnx`` is another than it says, or a file cannot be written.
    """
    source = folder / "classifier.onnx"
    for needed in (source, folder / MANIFEST):
        if not needed.is_file():
            raise ValueError(f"small classifiers need an export, and there is no {needed}")
    whole = verified(source)
    given = {"images": calibration[:3]}
    half = Probabilities(InType(checkpoint.model, torch.float16))
    content, _ = serialise(Artefact("classifier.fp16", half, given, ("probabilities",)), {})
    with atomic_write(folder / HALF) as temporary:
        temporary.write_bytes(content)
    with atomic_write(folder / EIGHT) as temporary:
        _quantize(whole, temporary, calibration)
    written = [folder / HALF, folder / EIGHT]
    name_files(
        folder / MANIFEST,
        {path.name: {"of": source.name, "sha256": sha256(path.read_bytes())} for path in written},
    )
    return written


def cost(folder: Path, images: Tensor, labels: Tensor) -> Cost:
    """Accuracy of ``classifier.onnx`` and its small forms in ONNX Runtime on the CPU."""
    names = ["classifier.onnx", HALF, EIGHT]
    accuracy = {}
    for name in names:
        session = OnnxSession(folder / name, CPU)
        answers = torch.cat([session.run({"images": chunk})[0].argmax(1) for chunk in images.split(_AT_ONCE)])
        accuracy[name] = float((answers == labels).float().mean())
    return Cost(len(images), accuracy, {name: (folder / name).stat().st_size for name in names})


def _quantize(source: bytes, target: Path, calibration: Tensor) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Batches of the calibration images."""

        def __init__(self) -> None:
            self._batches: Iterator[dict[str, Any]] = ({"images": b.numpy()} for b in calibration.split(_AT_ONCE))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a preprocessing that this file has had
    try:
        quantize_static(onnx.load_from_string(source), target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    finally:
        logging.disable(before)
