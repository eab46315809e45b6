"""The configuration is read by the server's own schema; the server itself does not run here."""

import pytest

from fastdef.checkpoint import Checkpoint
from fastdef.export.files import export_onnx
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
        "ids": [1],
        "seed": [1],
    }
    assert inputs["ids"].HasField("reshape")
    assert not inputs["images"].HasField("reshape")
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


def test_an_engine_goes_to_the_tensorrt_back_end_with_no_larger_batch_than_it_takes(copied, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    from fastdef.export.tensorrt_engines import EngineOptions, export_engines

    export_engines(copied, names=["defended"], options=EngineOptions(batches=(1, 4, 8)))

    model = write_repository(copied, tmp_path / "models")

    assert (parsed(model).backend, parsed(model).max_batch_size) == ("tensorrt", 8)
    assert (model / "1" / "model.plan").is_file()


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match="that `fastdef export` wrote"):
        write_repository(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
