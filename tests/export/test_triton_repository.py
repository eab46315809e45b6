"""The configuration is read by the server's own schema; the server itself does not run here."""

import json

import pytest

from fastdef.checkpoint import Checkpoint
from fastdef.export.files import export_onnx
from fastdef.export.manifest import sha256
from fastdef.export.triton_repository import write_repository


def parsed(path):
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient and grpcio")
    from google.protobuf import text_format

    return text_format.Parse((path / "config.pbtxt").read_text(), schema.ModelConfig())


def test_a_defended_classifier_is_served_in_joined_batches(folder, tmp_path):
    model = write_repository(folder, tmp_path / "models", name="guard", max_batch=32)

    config = parsed(model)
    assert (config.name, config.backend, config.max_batch_size) == ("guard", "onnxruntime", 32)
    assert config.HasField("dynamic_batching")
    inputs = {given.name: given for given in config.input}
    assert {name: list(given.dims) for name, given in inputs.items()} == {
        "images": [1, 12, 12],
        "ids": [4],
        "seed": [4],
    }
    assert not inputs["images"].HasField("reshape")
    assert next(given for given in config.output if given.name == "steps").HasField("reshape")
    outputs = {given.name: list(given.dims) for given in config.output}
    assert outputs == {"probabilities": [3], "steps": [1], "converged": [1], "loss": [1], "smoothed": [1, 12, 12]}
    assert (model / "1" / "model.onnx").read_bytes() == (folder / "defended.onnx").read_bytes()
    assert (model / "labels.txt").read_text() == "a\nb\nc\n"


def test_a_classifier_alone_is_served_too(checkpoint, tmp_path):
    plain = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, None, None)
    export_onnx(plain, tmp_path / "out", shape=(1, 12, 12))

    config = parsed(write_repository(tmp_path / "out", tmp_path / "models"))

    assert [given.name for given in config.input] == ["images"]
    assert [given.label_filename for given in config.output] == ["labels.txt"]


@pytest.mark.parametrize(
    ("built_by", "backend", "batch"), [("tensorrt 10.14.1", "tensorrt", 8), ("tensorrt_rtx 1.7.1", "onnxruntime", 64)]
)
def test_an_engine_is_served_where_tensorrt_proper_built_it(copied, tmp_path, built_by, backend, batch):
    (copied / "defended.engine").write_bytes(b"an engine")
    manifest = json.loads((copied / "model.json").read_text())
    manifest["files"]["defended.engine"] = {
        **manifest["files"]["defended.onnx"],
        "sha256": sha256(b"an engine"),
        "built_by": built_by,
        "batches": [1, 4, 8],
    }
    (copied / "model.json").write_text(json.dumps(manifest))

    model = write_repository(copied, tmp_path / "models")

    assert (parsed(model).backend, parsed(model).max_batch_size) == (backend, batch)
    assert (model / "1" / "model.plan").is_file() == (backend == "tensorrt")


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"an export that is whole has a model\.json"):
        write_repository(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
