"""Does an engine give the answers that an export is known to give? Every form of it is loaded, which asks it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fastdef.export.engine import load_engine
from fastdef.export.known_answers import Array, check_classifier
from fastdef.export.manifest import MANIFEST, read
from fastdef.export.opening import CPU, file_for, open_session
from fastdef.export.sessions import InferenceSession, Provider

# The engines by the names of the command line.
ENGINES: dict[str, Sequence[Provider]] = {
    "onnxruntime": CPU,
    "onnxruntime-cuda": ("CUDAExecutionProvider",),
    "openvino": ("OpenVINO",),
    "openvino-bf16": (("OpenVINO", {"INFERENCE_PRECISION_HINT": "bf16"}),),
    "pt2": ("PT2",),
    "tensorrt": ("TensorRT",),
}


def verify(folder: Path, providers: Sequence[Provider]) -> list[str]:
    """Ask each form that the folder has for an engine.

    Args:
        folder: that ``fastdef export`` wrote.
        providers: see :func:`load_engine`.

    Returns:
        The files of each form; they all gave the known answers.

    Raises:
        ValueError: at the first that does not, that cannot run here, or if there is none.
    """
    described = read(folder / MANIFEST)
    forms = {False: ("defended",), True: ("step", "classifier")}
    there = {
        driven: [file_for(folder, stem, providers) for stem in stems]
        for driven, stems in forms.items()
        if all(file_for(folder, stem, providers).name in described["files"] for stem in stems)
    }
    for driven in there:
        load_engine(folder, providers=providers, driven=driven).close()
    if there:
        return [", ".join(file.name for file in files) for files in there.values()]
    open_classifier(folder, providers)
    return [file_for(folder, "classifier", providers).name]


def open_classifier(folder: Path, providers: Sequence[Provider]) -> InferenceSession:
    """The classifier of an export without a defense.

    Raises:
        ValueError: if it does not give the known answers, or there is none.
    """
    file = file_for(folder, "classifier", providers)
    if not file.is_file():
        raise ValueError(f"an export for this engine needs a {file.name}, and there is no {file}")
    session = open_session(file, providers, spinning=True)

    def classify(images: Array) -> Array:
        return session.run({session.inputs[0]: torch.from_numpy(images)})[0].numpy(force=True)

    check_classifier(read(folder / MANIFEST), classify, exact=session.exact)
    return session
