import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from fastdef.checkpoint import Checkpoint, load, save
from fastdef.defense import ActiveDefense
from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
from fastdef.export.parity import check_parity
from fastdef.nn import architecture_of, build, parse_architecture

SHAPE = (1, 12, 12)


@pytest.fixture(scope="module")
def images():
    return torch.rand(9, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, images):
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=3, in_channels=1)).eval()
    defense = ActiveDefense(model, beta=3.0, max_steps=40, outer_loops=2, compile=False)
    defense.calibrate(images)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save(path, model, architecture=architecture_of(model), classes=("a", "b", "c"), defense=defense.config())
    return load(path)


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(checkpoint, folder, shape=SHAPE)
    return folder


def test_the_exported_file_answers_as_pytorch_does(checkpoint, folder, images):
    parity = check_parity(checkpoint, folder, images)

    assert parity.holds, str(parity)
    assert parity.smoothed_apart < 1e-5


def test_the_noise_may_be_given_instead(checkpoint, folder, images):
    import onnxruntime

    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    noise = torch.stack([defense._noise(torch.arange(9), loop, images) for loop in range(2)], dim=1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "noised.onnx", options, providers=["CPUExecutionProvider"])

    given = session.run(None, {"images": images.numpy(), "noise": noise.numpy()})

    with load_engine(folder) as engine:
        made = engine(images.numpy())
    np.testing.assert_allclose(given[0], made.probabilities, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(given[1], made.steps)


def test_seed_and_ids_decide_the_noise_and_neighbours_do_not(folder, images):
    with load_engine(folder) as engine:
        all_of_them = engine(images.numpy(), seed=3)
        one = engine(images[4:5].numpy(), ids=np.array([4]), seed=3)
        other = engine(images[4:5].numpy(), ids=np.array([4]), seed=4)

    np.testing.assert_allclose(one.smoothed[0], all_of_them.smoothed[4], rtol=0, atol=1e-5)
    assert np.abs(other.smoothed[0] - one.smoothed[0]).max() > 0.01


def test_files_are_what_the_manifest_says(folder):
    manifest = json.loads((folder / "model.json").read_text())

    assert sorted(manifest["files"]) == ["classifier.onnx", "defended.onnx", "noised.onnx", "step.onnx"]
    for name, file in manifest["files"].items():
        content = (folder / name).read_bytes()
        model = onnx.load_from_string(content)
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert [given.name for given in model.graph.input] == list(file["inputs"])
        assert [given.name for given in model.graph.output] == file["outputs"]
        assert {opset.domain: opset.version for opset in model.opset_import}[""] == manifest["opset"]
        assert json.loads(next(p.value for p in model.metadata_props if p.key == "fastdef"))["classes"] == [
            "a",
            "b",
            "c",
        ]
    assert sum(path.name.endswith((".onnx", ".json")) for path in folder.iterdir()) == len(list(folder.iterdir()))


def test_it_runs_without_torch(folder, images):
    np.save(folder.parent / "images.npy", images.numpy())
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np, onnxruntime
images = np.load({str(folder.parent / "images.npy")!r})
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession({str(folder / "defended.onnx")!r}, options)
out = session.run(None, {{"images": images, "ids": np.arange(len(images)), "seed": np.array(0)}})
print(out[1].tolist())
"""

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    with load_engine(folder) as engine:
        assert json.loads(run.stdout) == engine(images.numpy()).steps.tolist()


def test_a_model_without_a_defense_is_a_classifier_alone(checkpoint, tmp_path, images):
    plain = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, None, None)

    files = export_onnx(plain, tmp_path / "out", shape=SHAPE)

    assert [file.name for file in files] == ["classifier.onnx", "model.json"]
    with pytest.raises(ValueError, match="there is no"):
        load_engine(tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cannot load"),
        (lambda path: path.write_bytes((path.parent / "classifier.onnx").read_bytes()), "needs a defended.onnx"),
    ],
)
def test_a_damaged_or_another_file_is_refused(folder, tmp_path, spoil, message):
    for name in ("defended.onnx", "classifier.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    spoil(tmp_path / "defended.onnx")

    with pytest.raises(ValueError, match=message):
        load_engine(tmp_path)


def test_bad_calls_are_refused(folder, images):
    batch = images.numpy()
    with pytest.raises(ValueError, match="providers among"):
        load_engine(folder, providers=["NoSuchProvider"])
    with load_engine(folder) as engine:
        for bad in (batch[:, :, :5], batch.astype(np.float64), batch[:0]):
            with pytest.raises(ValueError, match=r"float32 images of shape \(N, 1, 12, 12\)"):
                engine(bad)
        with pytest.raises(ValueError, match=r"finite images in \[0, 1\]"):
            engine(batch * 255)
        with pytest.raises(ValueError, match="int64 ids"):
            engine(batch, ids=np.arange(3))
