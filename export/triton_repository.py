"""A model repository for NVIDIA's Triton Inference Server, of an export's files."""

import json
from pathlib import Path
from typing import Any

from fastdef.export.manifest import MANIFEST, read, verified
from fastdef.io import atomic_write, make_folder

_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "int32": "TYPE_INT32", "bool": "TYPE_BOOL"}
_BACKENDS = {".onnx": ("onnxruntime", "model.onnx"), ".engine": ("tensorrt", "model.plan")}
_WAIT = 500  # microseconds that a request waits for others to join


def write_repository(folder: Path, repository: Path, *, name: str = "fastdef", max_batch: int = 64) -> Path:
    """Write ``repository/NAME/config.pbtxt`` and ``repository/NAME/1/model.onnx`` (or ``.plan``) for Triton.

    The model is ``defended`` where the export has it, else ``classifier``; its engine where TensorRT built one (what
    TensorRT for RTX builds the server does not take). Requests are joined into batches: ids and seeds come with each
    image, so an answer does not depend on who else asks.

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
        file, source, labels, config = _plan(manifest, name, max_batch)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{folder / MANIFEST} does not describe what is to be served: {reason}") from error
    model = repository / name
    make_folder(model / "1")
    with atomic_write(model / "1" / file) as temporary:
        temporary.write_bytes(verified(folder / source))
    with atomic_write(model / "labels.txt") as temporary:
        temporary.write_text(labels)
    with atomic_write(model / "config.pbtxt") as temporary:
        temporary.write_text(config)
    return model


def _plan(manifest: dict[str, Any], name: str, max_batch: int) -> tuple[str, str, str, str]:
    """The model's file on the server, the one of the export, and the contents of the two others."""
    stem = "defended" if "defended.onnx" in manifest["files"] else "classifier"
    engine = manifest["files"].get(f"{stem}.engine", {})
    # The server's back end is TensorRT proper, which does not take what TensorRT for RTX built.
    ending = ".engine" if engine.get("built_by", "").startswith("tensorrt ") else ".onnx"
    backend, file = _BACKENDS[ending]
    described = manifest["files"][f"{stem}{ending}"]
    if "batches" in described:
        max_batch = min(max_batch, described["batches"][2])
    labels = "".join(f"{' '.join(label.split())}\n" for label in manifest["classes"])  # a line each
    return file, f"{stem}{ending}", labels, _config(name, backend, max_batch, described)


def _config(name: str, backend: str, max_batch: int, described: dict[str, Any]) -> str:
    inputs = ",\n".join(_tensor(key, value) for key, value in described["inputs"].items())
    outputs = ",\n".join(
        _tensor(key, value, labels=key == "probabilities") for key, value in described["outputs"].items()
    )
    return (
        f'name: {json.dumps(name)}\nbackend: "{backend}"\nmax_batch_size: {max_batch}\n'
        f"input [\n{inputs}\n]\noutput [\n{outputs}\n]\n"
        f"dynamic_batching {{ max_queue_delay_microseconds: {_WAIT} }}\n"
    )


def _tensor(name: str, described: dict[str, Any], *, labels: bool = False) -> str:
    """A tensor without its batch; one that has nothing else is a single number to the client."""
    dims = described["shape"][1:]
    parts = [f"name: {json.dumps(name)}", f"data_type: {_TYPES[described['dtype']]}"]
    parts.append(f"dims: [ {', '.join(map(str, dims or [1]))} ]")
    if not dims:
        parts.append("reshape: { shape: [ ] }")
    if labels:
        parts.append('label_filename: "labels.txt"')
    return "  { " + " ".join(parts) + " }"
