"""The configuration, read by the server's own schema; test_triton_server.py runs the server."""

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


def test_a_defended_classifier_takes_images_alone_and_tells_nothing_that_an_attacker_could_climb(folder, tmp_path):
    model = write_repository(folder, tmp_path / "models", name="guard", max_batch=32)

    config = parsed(model)
    assert (config.name, config.backend, config.max_batch_size) == ("guard", "python", 32)
    assert {given.name: list(given.dims) for given in config.input} == {"images": [1, 12, 12]}
    assert {given.name: list(given.dims) for given in config.output} == {"probabilities": [3], "converged": [1]}
    assert config.parameters["provider"].string_value == "CPUExecutionProvider"
    assert sorted(path.name for path in (model / "1" / "export").iterdir()) == [
        "classifier.onnx",
        "model.json",
        "step.onnx",
    ]
    assert (model / "labels.txt").read_text() == "a\nb\nc\n"


def test_the_queue_is_bounded_and_the_model_warmed_up(folder, tmp_path):
    config = parsed(write_repository(folder, tmp_path / "models"))

    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size == 256
    assert policy.default_timeout_microseconds == 30_000_000
    assert policy.timeout_action == policy.REJECT
    assert [list(given.dims) for warm in config.model_warmup for given in warm.inputs.values()] == [[1, 12, 12]]


def test_a_classifier_alone_is_served_too(checkpoint, tmp_path):
    plain = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, None, None)
    export_onnx(plain, tmp_path / "out", shape=(1, 12, 12))

    model = write_repository(tmp_path / "out", tmp_path / "models")

    config = parsed(model)
    assert config.backend == "onnxruntime"
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert [given.name for given in config.input] == ["images"]
    assert [given.label_filename for given in config.output] == ["labels.txt"]
    assert (model / "1" / "model.onnx").read_bytes() == (tmp_path / "out" / "classifier.onnx").read_bytes()


def with_engines(folder, stems, built_by):
    manifest = json.loads((folder / "model.json").read_text())
    for stem in stems:
        (folder / f"{stem}.engine").write_bytes(b"an engine")
        manifest["files"][f"{stem}.engine"] = {
            **manifest["files"][f"{stem}.onnx"],
            "sha256": sha256(b"an engine"),
            "built_by": built_by,
            "batches": [1, 4, 8],
        }
    (folder / "model.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("stems", "provider", "batch"),
    [(["step", "classifier"], "TensorRT", 8), (["step"], "CPUExecutionProvider", 64)],
)
def test_a_defense_is_driven_on_its_engines_where_it_has_them_all(copied, tmp_path, stems, provider, batch):
    with_engines(copied, stems, "tensorrt_rtx 1.7.1")

    model = write_repository(copied, tmp_path / "models")

    config = parsed(model)
    assert (config.parameters["provider"].string_value, config.max_batch_size) == (provider, batch)
    assert (model / "1" / "export" / "step.engine").is_file() == (provider == "TensorRT")
    assert config.instance_group[0].kind == (1 if provider == "TensorRT" else 2)  # a GPU, a CPU


@pytest.mark.parametrize(
    ("built_by", "backend", "batch"), [("tensorrt 10.14.1", "tensorrt", 8), ("tensorrt_rtx 1.7.1", "onnxruntime", 64)]
)
def test_a_classifier_s_engine_is_served_where_tensorrt_proper_built_it(checkpoint, tmp_path, built_by, backend, batch):
    plain = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, None, None)
    export_onnx(plain, tmp_path / "out", shape=(1, 12, 12))
    with_engines(tmp_path / "out", ["classifier"], built_by)

    model = write_repository(tmp_path / "out", tmp_path / "models")

    assert (parsed(model).backend, parsed(model).max_batch_size) == (backend, batch)
    assert (model / "1" / "model.plan").is_file() == (backend == "tensorrt")


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"an export that is whole has a model\.json"):
        write_repository(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
