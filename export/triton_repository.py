"""A model repository for NVIDIA's Triton Inference Server, of an export's files.

With a defense the model is a Python back end around the driven engine: clients send images and nothing else, for who
chooses ids and seed chooses the noise; they get probabilities and whether the smoothing came to its end, and not the
smoothed images or the loss, which an attacker would climb. Queue and waiting are bounded, and a server that starts has
seen the known answers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdef.export.manifest import MANIFEST, read, verified
from fastdef.io import atomic_write, make_folder

_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "int32": "TYPE_INT32", "bool": "TYPE_BOOL"}
_BACKENDS = {".onnx": ("onnxruntime", "model.onnx"), ".engine": ("tensorrt", "model.plan")}
_DELAY = 500  # microseconds that a request waits for others to join
_QUEUE = 256  # requests that wait; one more is refused
_TIMEOUT = 30_000_000  # microseconds that one waits; then it is refused
_MODEL = """\
'The back end looks for a TritonPythonModel here.'

from fastdef.export.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""


def write_repository(folder: Path, repository: Path, *, name: str = "fastdef", max_batch: int = 64) -> Path:
    """Write a model's folder for Triton, ``repository/NAME``.

    With a defense: ``1/model.py`` and ``1/export`` with ``step`` and ``classifier``, as TensorRT's engines where the
    export has them. The server's Python needs fastdef with its extra ``export``. Without a defense: ``1/model.onnx``
    for the server's ONNX Runtime, or ``1/model.plan`` where TensorRT proper built the engine (what TensorRT for RTX
    builds the server's own back end does not take).

    Args:
        folder: that ``fastdef export`` wrote.
        repository: made if it is not there.
        name: of the model on the server.
        max_batch: largest batch the server makes.

    Returns:
        The model's folder.

    Raises:
        ValueError: if the folder holds no export or a file that ``model.json`` does not name, or one cannot be written.
    """
    if Path(name).name != name or name in ("", ".."):
        raise ValueError(f"a repository needs a model's name that can be a folder's, got {name!r}")
    manifest = read(folder / MANIFEST)
    try:
        files = _files(folder, manifest, name, max_batch)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{folder / MANIFEST} does not describe what is to be served: {reason}") from error
    model = repository / name
    for path, content in files.items():
        make_folder((model / path).parent)
        with atomic_write(model / path) as temporary:
            temporary.write_bytes(content)
    return model


def _files(folder: Path, manifest: dict[str, Any], name: str, max_batch: int) -> dict[str, bytes]:
    """By path under the model's folder, its configuration last: without it the server sees no model."""
    labels = "".join(f"{' '.join(label.split())}\n" for label in manifest["classes"])  # a line each
    plan = _defended if "step.onnx" in manifest["files"] else _classifier
    files, config = plan(folder, manifest, max_batch)
    return {**files, "labels.txt": labels.encode(), "config.pbtxt": f"name: {json.dumps(name)}\n{config}".encode()}


def _defended(folder: Path, manifest: dict[str, Any], max_batch: int) -> tuple[dict[str, bytes], str]:
    described = manifest["files"]
    engines = {"step.engine", "classifier.engine"} <= described.keys()
    ending, provider = (".engine", "TensorRT") if engines else (".onnx", "CPUExecutionProvider")
    exported = [f"{stem}{ending}" for stem in ("step", "classifier")]
    files = {f"1/export/{file}": verified(folder / file) for file in exported}
    files |= {"1/export/model.json": (folder / MANIFEST).read_bytes(), "1/model.py": _MODEL.encode()}
    max_batch = min(max_batch, *(described[file].get("batches", [0, 0, max_batch])[2] for file in exported))
    inputs = {"images": described["step.onnx"]["inputs"]["images"]}
    outputs = {"probabilities": described["classifier.onnx"]["outputs"]["probabilities"]}
    kind = "KIND_GPU" if engines else "KIND_CPU"
    config = _config("python", max_batch, inputs, outputs).replace(
        "output [\n", 'output [\n  { name: "converged" data_type: TYPE_BOOL dims: [ 1 ] },\n'
    )
    config += f"instance_group [ {{ kind: {kind} count: 1 }} ]\n"
    config += f'parameters {{ key: "provider" value {{ string_value: "{provider}" }} }}\n'
    return files, config


def _classifier(folder: Path, manifest: dict[str, Any], max_batch: int) -> tuple[dict[str, bytes], str]:
    engine = manifest["files"].get("classifier.engine", {})
    # The server's back end is TensorRT proper, which does not take what TensorRT for RTX built.
    ending = ".engine" if engine.get("built_by", "").startswith("tensorrt ") else ".onnx"
    backend, file = _BACKENDS[ending]
    described = manifest["files"][f"classifier{ending}"]
    max_batch = min(max_batch, described.get("batches", [0, 0, max_batch])[2])
    files = {f"1/{file}": verified(folder / f"classifier{ending}")}
    return files, _config(backend, max_batch, described["inputs"], described["outputs"])


def _config(backend: str, max_batch: int, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> str:
    given = ",\n".join(_tensor(key, value) for key, value in inputs.items())
    answered = ",\n".join(_tensor(key, value, labels=key == "probabilities") for key, value in outputs.items())
    policy = (
        f"timeout_action: REJECT default_timeout_microseconds: {_TIMEOUT} allow_timeout_override: true "
        f"max_queue_size: {_QUEUE}"
    )
    warmed = " ".join(
        f"inputs {{ key: {json.dumps(key)} value {{ {_type_and_dims(value)} zero_data: true }} }}"
        for key, value in inputs.items()
    )
    return (
        f'backend: "{backend}"\nmax_batch_size: {max_batch}\n'
        f"input [\n{given}\n]\noutput [\n{answered}\n]\n"
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {_DELAY}\n  default_queue_policy {{ {policy} }}\n}}\n"
        f'model_warmup [ {{ name: "one image" batch_size: 1 {warmed} }} ]\n'
    )


def _tensor(name: str, described: dict[str, Any], *, labels: bool = False) -> str:
    file = ' label_filename: "labels.txt"' if labels else ""
    return f"  {{ name: {json.dumps(name)} {_type_and_dims(described)}{file} }}"


def _type_and_dims(described: dict[str, Any]) -> str:
    """Without the batch."""
    return f"data_type: {_TYPES[described['dtype']]} dims: [ {', '.join(map(str, described['shape'][1:]))} ]"
