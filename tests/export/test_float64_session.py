import numpy as np
import onnxruntime
import pytest
import torch

from fastdef.export.float64_session import Float64Session


def test_every_float_is_double_those_in_a_loop_s_body_too(folder, images):
    given = {"images": images, "noise": torch.zeros(9, 2, *images.shape[1:])}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    single = onnxruntime.InferenceSession(folder / "noised.onnx", options, providers=["CPUExecutionProvider"])
    expected = single.run(None, {name: value.numpy() for name, value in given.items()})

    got = Float64Session(folder / "noised.onnx").run({name: value.double() for name, value in given.items()})

    assert [value.dtype for value in got] == [torch.float64, torch.int32, torch.bool, torch.float64, torch.float64]
    loss = got[3].numpy()
    assert 1e-10 < np.abs(loss - expected[3]).max() < 1e-6  # one weight left as it was would hardly show here
    assert (loss != loss.astype(np.float32)).all()


def test_a_file_that_is_not_the_one_named_is_refused(copied):
    (copied / "noised.onnx").write_bytes((copied / "step.onnx").read_bytes())

    with pytest.raises(ValueError, match="its sha256 is another"):
        Float64Session(copied / "noised.onnx")
