import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from fastdef.checkpoint import Checkpoint
from fastdef.defense import ActiveDefense
from fastdef.export.engine import load_engine
from fastdef.export.files import export_onnx
from fastdef.export.parity import check_parity
from fastdef.nn import architecture_of, build, convert_to_afa, convert_to_multi_bn, parse_architecture
from tests.runtime.networks import Attention

SHAPE = (1, 12, 12)


def test_the_exported_files_answer_as_pytorch_does_part_by_part_and_whole(checkpoint, folder, images):
    found = check_parity(checkpoint, folder, images)

    assert all(finding.holds for finding in found), "; ".join(map(str, found))
    assert [finding.name for finding in found][-2:] == ["defended.onnx", "step.onnx, driven"]
    assert found[-3].name == "noised.onnx in double precision, 8 of them"
    assert found[-3].probabilities_apart < 1e-6
    assert found[-1].steps_equal == found[-2].steps_equal == 1


def test_the_first_part_that_differs_is_named(checkpoint, folder, images):
    defense = {**checkpoint.defense, "beta": 2 * checkpoint.defense["beta"]}
    other = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, defense, None)

    found = check_parity(other, folder, images)

    failing = [finding.name for finding in found if not finding.holds]
    assert failing[0] == "step.onnx: images_out, over a step"
    assert found[0].holds


def test_a_file_whose_steps_are_a_little_long_is_told_from_rounding(checkpoint, folder, images):
    defense = {**checkpoint.defense, "beta": checkpoint.defense["beta"] / 1.005}
    other = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, defense, None)

    found = check_parity(other, folder, images)

    failing = [finding.name for finding in found if not finding.holds]
    assert failing[0] == "noised.onnx in double precision, 8 of them: smoothed images"


def test_the_noise_may_be_given_instead(checkpoint, folder, images):
    import onnxruntime

    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    noise = torch.stack([defense.noise(torch.arange(9), loop, images) for loop in range(2)], dim=1)
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

    assert sorted(manifest["files"]) == [
        "classifier.onnx",
        "defended.masked.onnx",
        "defended.onnx",
        "noised.masked.onnx",
        "noised.onnx",
        "step.onnx",
    ]
    for name, file in manifest["files"].items():
        content = (folder / name).read_bytes()
        model = onnx.load_from_string(content)
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert [given.name for given in model.graph.input] == list(file["inputs"])
        assert [given.name for given in model.graph.output] == list(file["outputs"])
        assert {opset.domain: opset.version for opset in model.opset_import}[""] == manifest["opset"]
        assert json.loads(next(p.value for p in model.metadata_props if p.key == "fastdef"))["classes"] == [
            "a",
            "b",
            "c",
        ]
    assert sum(path.name.endswith((".onnx", ".json")) for path in folder.iterdir()) == len(list(folder.iterdir()))


def test_it_runs_in_a_python_that_has_numpy_and_onnxruntime_and_nothing_else(folder, images, tmp_path):
    bare = tmp_path / "site"
    bare.mkdir()
    for name in ("numpy", "onnxruntime"):
        for file in importlib.metadata.files(name):
            top = file.parts[0]
            source = Path(file.locate()).parents[len(file.parts) - 1] / top
            if not top.startswith("..") and not (bare / top).exists():
                (bare / top).symlink_to(source)
    np.save(tmp_path / "images.npy", images.numpy())
    program = f"""
import sys
sys.path.append({str(bare)!r})
import numpy as np, onnxruntime
images = np.load({str(tmp_path / "images.npy")!r})
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession({str(folder / "defended.onnx")!r}, options)
ids = np.arange(len(images)).view(np.uint16).reshape(-1, 4).astype(np.int32)  # four of 16 bits, the lowest first
out = session.run(None, {{"images": images, "ids": ids, "seed": np.zeros_like(ids)}})
print(out[1].tolist())
try:
    import torch
except ImportError:
    print("no torch")
"""

    isolated = [sys.executable, "-I", "-S", "-c", program]  # no site-packages, no environment
    run = subprocess.run(isolated, capture_output=True, text=True, check=True)

    steps, without = run.stdout.splitlines()
    assert without == "no torch"
    with load_engine(folder) as engine:
        assert json.loads(steps) == engine(images.numpy()).steps.tolist()


def test_a_model_without_a_defense_is_a_classifier_alone(checkpoint, tmp_path, images):
    plain = Checkpoint(checkpoint.model, checkpoint.architecture, checkpoint.classes, None, None)

    files = export_onnx(plain, tmp_path / "out", shape=SHAPE)

    assert [file.name for file in files] == ["classifier.onnx", "model.json"]
    with pytest.raises(ValueError, match="there is no"):
        load_engine(tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "ONNX Runtime refuses"),
        (lambda path: path.write_bytes((path.parent / "classifier.onnx").read_bytes()), "needs a defended.onnx"),
    ],
)
def test_a_damaged_or_another_file_is_refused(folder, tmp_path, spoil, message):
    for name in ("defended.onnx", "classifier.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    spoil(tmp_path / "defended.onnx")

    with pytest.raises(ValueError, match=message):
        load_engine(tmp_path / "defended.onnx")


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
        with pytest.raises(ValueError, match="seed from 0 up"):
            engine(batch, seed=-1)
    with pytest.raises(ValueError, match="was closed"):
        engine(batch)


def test_the_driven_form_answers_as_the_whole_one(folder, images):
    many = np.concatenate([images.numpy()] * 3)
    with load_engine(folder) as whole, load_engine(folder, driven=True, slots=8) as driven:
        expected, got = whole(many, seed=5), driven(many, seed=5)

    np.testing.assert_array_equal(got.steps, expected.steps)
    np.testing.assert_array_equal(got.converged, expected.converged)
    np.testing.assert_allclose(got.probabilities, expected.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.smoothed, expected.smoothed, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_in_half_precision_the_answers_are_nearly_the_same(checkpoint, folder, images, tmp_path):
    export_onnx(checkpoint, tmp_path, shape=SHAPE, dtype=torch.float16)

    with load_engine(folder, driven=True) as exact, load_engine(tmp_path, driven=True) as half:
        expected, got = exact(images.numpy(), seed=5), half(images.numpy(), seed=5)

    assert got.probabilities.dtype == np.float32
    assert 0 < np.abs(got.probabilities - expected.probabilities).max() < 0.05
    assert np.abs(got.steps - expected.steps).mean() < 2


@pytest.mark.slow
def test_a_bfloat16_file_says_nearly_the_same_and_onnx_runtime_on_a_cpu_refuses_it_in_one_line(
    checkpoint, images, tmp_path
):
    export_onnx(checkpoint, tmp_path, shape=SHAPE, dtype=torch.bfloat16)

    (got,) = ReferenceEvaluator(str(tmp_path / "classifier.onnx")).run(None, {"images": images.numpy()})

    expected = checkpoint.model(images).softmax(1).numpy(force=True)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - expected).max() < 0.05
    with pytest.raises(ValueError, match=r"^ONNX Runtime refuses .*defended.onnx: .*NOT_IMPLEMENTED.*$"):
        load_engine(tmp_path)


@pytest.mark.parametrize(
    ("placement", "defended"),
    [
        ("shared", False),
        pytest.param("shared", True, marks=pytest.mark.slow),
        pytest.param("layerwise", True, marks=pytest.mark.slow),
    ],
)
def test_an_afa_model_is_one_file_with_its_active_defense_or_without(placement, defended, images, tmp_path):
    model = convert_to_multi_bn(build(parse_architecture("wrn-10-1", num_classes=3, in_channels=1)), 2)
    with torch.no_grad():
        model.bn1.weight[1] *= 0.5
    model = convert_to_afa(model, placement=placement, hidden=8).eval()
    defense = ActiveDefense(model, beta=3.0, max_steps=20, compile=False)
    defense.calibrate(images)
    config = defense.config() if defended else None
    checkpoint = Checkpoint(model, architecture_of(model), ("a", "b", "c"), config, None)

    export_onnx(checkpoint, tmp_path, shape=SHAPE)

    found = check_parity(checkpoint, tmp_path, images)
    assert all(finding.holds for finding in found), "; ".join(map(str, found))


@pytest.mark.slow
def test_a_network_of_layers_that_torch_runs_at_one_batch_size_is_exported_for_any(images, tmp_path):
    torch.manual_seed(0)
    stem = [nn.InstanceNorm2d(4, affine=True), nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(2)]
    layers = nn.Conv2d(1, 4, 3, padding=1), *stem, Attention(4), nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    defense = ActiveDefense(model, "0", beta=3.0, max_steps=20, compile=False)
    defense.calibrate(images)
    checkpoint = Checkpoint(model, {}, ("a", "b", "c"), defense.config(), None)

    export_onnx(checkpoint, tmp_path, shape=SHAPE)

    found = check_parity(checkpoint, tmp_path, images)
    assert all(finding.holds for finding in found), "; ".join(map(str, found))


class Eigenvalues(nn.Module):
    """Has no form in ONNX."""

    def forward(self, x):
        return torch.linalg.eigvals(x.mean(1)).real


def test_an_operator_that_onnx_lacks_is_named_with_its_layer(tmp_path):
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 1, 3, padding=1), odd=Eigenvalues()))
    checkpoint = Checkpoint(model, {}, ("a", "b"), None, None)

    with pytest.raises(ValueError, match=r"cannot export classifier.onnx: the layer 'odd' has aten.linalg_eig"):
        export_onnx(checkpoint, tmp_path / "out", shape=SHAPE)

    assert list((tmp_path / "out").iterdir()) == []
