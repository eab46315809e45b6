import pytest
import torch

from fastdef.export.manifest import read, sha256
from fastdef.export.opening import CPU
from fastdef.export.quantized import cost, export_small
from fastdef.export.sessions import OnnxSession


def test_small_classifiers_answer_nearly_as_the_whole_one_and_are_smaller(checkpoint, copied, images):
    written = export_small(checkpoint, copied, images)

    assert [path.name for path in written] == ["classifier.fp16.onnx", "classifier.int8.onnx"]
    (exact,) = OnnxSession(copied / "classifier.onnx", CPU).run({"images": images})
    for path, apart in zip(written, (0.01, 0.1), strict=True):
        (probabilities,) = OnnxSession(path, CPU).run({"images": images})
        assert 0 < (probabilities - exact).abs().max() < apart
    named = read(copied / "model.json")["files"]
    assert all(named[path.name]["sha256"] == sha256(path.read_bytes()) for path in written)
    told = cost(copied, images, exact.argmax(1))
    assert told.accuracy["classifier.onnx"] == 1.0
    assert told.accuracy["classifier.fp16.onnx"] > 0.8
    assert told.file_bytes["classifier.fp16.onnx"] < 0.7 * told.file_bytes["classifier.onnx"]
    assert "classifier.int8.onnx" in str(told)


def test_the_checkpoint_s_own_weights_stay_in_single_precision(checkpoint, copied, images):
    export_small(checkpoint, copied, images)

    assert {weight.dtype for weight in checkpoint.model.parameters()} == {torch.float32}


def test_without_an_export_there_is_nothing_to_make_small(checkpoint, tmp_path, images):
    (tmp_path / "classifier.onnx").write_bytes(b"of another")

    with pytest.raises(ValueError, match=r"need an export, and there is no .*model.json"):
        export_small(checkpoint, tmp_path, images)
