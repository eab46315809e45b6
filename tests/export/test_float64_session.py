from collections import OrderedDict

import numpy as np
import onnxruntime
import pytest
import torch

import fastdef
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


@pytest.mark.slow
def test_a_pooled_stem_is_evaluated_as_pytorch_does(tmp_path):
    torch.manual_seed(0)
    layers = {
        "stem": torch.nn.Conv2d(3, 4, 3, padding=1),
        "pool": torch.nn.MaxPool2d(3, 2, 1),
        "group": torch.nn.Conv2d(4, 4, 3, padding=1),
        "head": torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)),
    }
    model = torch.nn.Sequential(OrderedDict(layers)).eval()
    images = torch.rand(3, 3, 8, 8)
    defense = fastdef.ActiveDefense(model, "group", beta=1.0, compile=False, max_steps=5)
    defense.calibrate(images)
    fastdef.export_onnx(defense, tmp_path, shape=(3, 8, 8))
    noise = defense.noised(images) - images

    _, steps, _, _, smoothed = Float64Session(tmp_path / "noised.onnx").run(
        {"images": images.double(), "noise": noise[:, None].double()}
    )

    double = fastdef.ActiveDefense.from_config(model.double(), defense.config(), compile=False)
    expected = double.smooth(images.double(), noise=noise.double())
    assert steps.tolist() == expected.steps.tolist()
    assert max(steps) > 1
    torch.testing.assert_close(smoothed, expected.images.double(), rtol=0, atol=1e-6)
