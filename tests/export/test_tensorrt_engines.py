"""Engines are built for real, on any machine; to run them takes a GPU."""

import hashlib
import json

import pytest
import torch

from fastdef.export import tensorrt_engines
from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
from fastdef.export.manifest import name_files, sha256
from fastdef.export.opening import open_session
from fastdef.export.tensorrt_engines import EngineOptions, export_engines

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, or a machine with tensorrt")


def test_every_file_parses_and_builds_the_loop_and_all(copied):
    written = export_engines(copied, options=EngineOptions(batches=(1, 4, 8)))

    manifest = json.loads((copied / "model.json").read_text())
    assert sorted(path.stem for path in written) == ["classifier", "defended", "noised", "step"]
    for path in written:
        told = manifest["files"][path.name]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"]
        assert told["batches"] == [1, 4, 8]
        assert told["built_by"].startswith("tensorrt")
        assert told["inputs"] == manifest["files"][f"{path.stem}.onnx"]["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_networks_of_half_precision_build_too(checkpoint, tmp_path, dtype):
    export_onnx(checkpoint, tmp_path, shape=(1, 12, 12), dtype=getattr(torch, dtype), masked=True)

    written = export_engines(tmp_path, options=EngineOptions(batches=(1, 4, 8)))

    manifest = json.loads((tmp_path / "model.json").read_text())
    assert manifest["dtype"] == dtype
    assert manifest["files"]["defended.onnx"]["inputs"]["images"]["dtype"] == "float32"
    assert len(written) == 4


def test_an_engine_may_be_for_other_gpus_and_versions_and_of_chosen_files(copied):
    options = EngineOptions(batches=(1, 1, 1), hardware_compatible=True)

    written = export_engines(copied, names=["step"], options=options)

    assert [path.name for path in written] == ["step.engine"]


def test_a_loop_without_its_masked_form_is_refused(copied):
    manifest = json.loads((copied / "model.json").read_text())
    del manifest["files"]["defended.masked.onnx"]
    (copied / "model.json").write_text(json.dumps(manifest))

    with pytest.raises(ValueError, match=r"built from defended\.masked\.onnx, which .* has not"):
        export_engines(copied)

    assert not list(copied.glob("*.engine"))


def test_what_tensorrt_does_not_take_is_one_line_with_its_reason_and_no_file(copied):
    (copied / "step.onnx").write_bytes(b"not a model")
    name_files(copied / "model.json", {"step.onnx": {"sha256": sha256(b"not a model")}})

    with pytest.raises(ValueError, match=r"TensorRT cannot take .*step.onnx"):
        export_engines(copied, names=["step"])

    assert not (copied / "step.engine").exists()
    assert "step.engine" not in json.loads((copied / "model.json").read_text())["files"]


def test_a_folder_without_an_export_and_wrong_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"an export that is whole has a model\.json"):
        export_engines(tmp_path)
    for batches in ((0, 1, 1), (4, 2, 8), (1, 2)):
        with pytest.raises(ValueError, match="three rising batches"):
            EngineOptions(batches=batches)


def test_without_tensorrt_it_is_said_what_to_install(monkeypatch, copied):
    monkeypatch.setattr(tensorrt_engines, "PACKAGES", ("no_such_tensorrt",))

    with pytest.raises(ValueError, match=r"install fastdef\[gpu\]"):
        export_engines(copied)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_to_run_an_engine_takes_a_gpu(copied):
    export_engines(copied, names=["defended"], options=EngineOptions(batches=(1, 1, 1)))

    with pytest.raises(ValueError, match="TensorRT needs a CUDA device"):
        load_engine(copied / "defended.engine")


@pytest.mark.gpu
def test_driven_steps_in_cuda_graphs_answer_as_the_same_without(copied, images):
    export_engines(copied, options=EngineOptions(batches=(1, 4, 64)))
    for provider in ("TensorRT", "CUDAExecutionProvider"):
        with (
            load_engine(copied, providers=[provider], driven=True) as plain,
            load_engine(copied, providers=[provider], driven=True, cuda_graphs=True) as graphed,
        ):
            for given in (images.numpy(), images.flip(0).numpy()):
                expected, got = plain(given, seed=3), graphed(given, seed=3)

                assert (got.steps == expected.steps).all()
                assert (got.probabilities.argmax(1) == expected.probabilities.argmax(1)).all()


def test_cuda_graphs_are_of_a_driven_step_on_cuda(copied):
    with pytest.raises(ValueError, match="cuda_graphs around the step of a driven export: pass driven=True"):
        load_engine(copied, cuda_graphs=True)
    with pytest.raises(ValueError, match="cuda_graphs need TensorRT or the CUDAExecutionProvider, got CPUExec"):
        load_engine(copied, driven=True, cuda_graphs=True)


@pytest.mark.parametrize("name", ["TensorRT", "PT2"])
def test_an_option_that_an_engine_would_ignore_is_refused(copied, name):
    with pytest.raises(ValueError, match=f"{name} has no options, got precision"):
        open_session(copied / "defended.onnx", [(name, {"precision": "fp16"})], spinning=False)


@pytest.mark.gpu
@pytest.mark.parametrize("driven", [False, True])
def test_engines_answer_as_pytorch_does(copied, images, driven):
    export_engines(copied, options=EngineOptions(batches=(1, 4, 64)))
    with load_engine(copied) as onnx, load_engine(copied, providers=["TensorRT"], driven=driven) as engine:
        expected, got = onnx(images.numpy(), seed=3), engine(images.numpy(), seed=3)

    assert (abs(got.steps - expected.steps) <= 2).all()
    assert (got.probabilities.argmax(1) == expected.probabilities.argmax(1)).all()


@pytest.mark.slow
def test_a_wide_afa_model_builds_too(tmp_path):
    from fastdef.checkpoint import Checkpoint
    from fastdef.nn import architecture_of, build, convert_to_afa, convert_to_multi_bn, parse_architecture

    model = convert_to_afa(convert_to_multi_bn(build(parse_architecture("wrn-16-4")), 5)).eval()
    checkpoint = Checkpoint(model, architecture_of(model), tuple("abcdefghij"), None, None)
    export_onnx(checkpoint, tmp_path, shape=(3, 32, 32))

    (path,) = export_engines(tmp_path)

    assert path.stat().st_size > 2**20
