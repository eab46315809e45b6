"""An engine is the one that was asked for, or it is refused."""

import pytest
import torch
from torch import nn

from fastdef.defense import ActiveDefense, uniform_noise
from fastdef.export.engine import load_engine
from fastdef.export.files import artefacts, serialise
from fastdef.export.manifest import name_files, read, sha256
from fastdef.export.opening import named, open_session
from fastdef.export.openvino_session import export_openvino
from fastdef.export.pt2 import export_pt2
from fastdef.export.sessions import check_providers

BFLOAT16 = ("OpenVINO", {"INFERENCE_PRECISION_HINT": "bf16"})


def computes_in_bfloat16():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_providers_are_names_or_pairs_of_a_name_and_options(folder, images):
    assert named(["A", ("B", {"x": 1})]) == [("A", {}), ("B", {"x": 1})]
    with load_engine(folder, providers=[("CPUExecutionProvider", {})], driven=True) as engine:
        assert engine(images.numpy()).steps.any()


@pytest.mark.parametrize(
    ("providers", "told"),
    [
        ([], "at least one provider"),
        ("CPUExecutionProvider", "a sequence"),
        ([("A",)], "a pair, got"),
        ([("A", 3)], "options of A need to be a mapping"),
        (["OpenVINO", "CPUExecutionProvider"], "OpenVINO is an engine of its own and comes alone"),
    ],
)
def test_other_providers_are_refused(folder, providers, told):
    with pytest.raises(ValueError, match=told):
        load_engine(folder, providers=providers)


def test_a_session_that_went_to_another_provider_is_refused():
    check_providers(["CUDAExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"])

    with pytest.raises(ValueError, match="cannot run CUDAExecutionProvider here and took CPUExecutionProvider"):
        check_providers(["CUDAExecutionProvider"], ["CPUExecutionProvider"])


@pytest.mark.parametrize(("spinning", "told"), [(True, "1"), (False, "0")])
def test_threads_wait_busily_where_they_may_and_not_elsewhere(folder, spinning, told):
    session = open_session(folder / "step.onnx", ["CPUExecutionProvider"], spinning=spinning)

    options = session._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == told


def test_the_driven_form_s_threads_do_not_wait_busily(folder):
    with load_engine(folder, driven=True) as driven, load_engine(folder) as whole:
        step, classifier = driven._opened[0]._step, driven._opened[1]
        entries = [
            session._session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
            for session in (step, classifier, whole._session)
        ]

    assert entries == ["0", "0", "1"]


@pytest.mark.parametrize("driven", [False, True])
@pytest.mark.parametrize("form", ["onnx", "xml"])
def test_openvino_answers_as_onnx_runtime_does(copied, images, driven, form):
    if form == "xml":
        export_openvino(copied)
    with load_engine(copied, driven=driven) as engine:
        expected = engine(images.numpy(), seed=2**40)

    with load_engine(copied, providers=["OpenVINO"], driven=driven) as engine:
        got = engine(images.numpy(), seed=2**40)

    assert (got.steps == expected.steps).all()
    torch.testing.assert_close(torch.from_numpy(got.smoothed), torch.from_numpy(expected.smoothed), atol=1e-4, rtol=0)


class WithInt64Noise(nn.Module):
    """The defended classifier with the noise of PyTorch, which 64-bit integers make."""

    def __init__(self, defended, sigma, loops):
        super().__init__()
        self.noised = defended.noised
        self.sigma = sigma
        self.loops = loops

    def forward(self, images, ids, seed):
        places = 2 ** (16 * torch.arange(3))
        ids, seed = ((values[:, :3].long() * places).sum(1) for values in (ids, seed))
        shape = tuple(images.shape[1:])
        noise = [
            uniform_noise(ids, torch.full_like(ids, loop), shape, seed=seed[:, None], sigma=self.sigma)
            for loop in range(self.loops)
        ]
        return self.noised(images, torch.stack(noise, dim=1))


def test_openvino_is_refused_with_noise_that_it_computes_in_32_bits(checkpoint, copied):
    described = read(copied / "model.json")
    (defended,) = (a for a in artefacts(checkpoint, (1, 12, 12), torch.float32) if a.name == "defended")
    defense = ActiveDefense.from_checkpoint(checkpoint, compile=False)
    old = WithInt64Noise(defended.module, defense.sigma, defense.outer_loops)
    content, _ = serialise(type(defended)(defended.name, old, defended.inputs, defended.outputs), described)
    (copied / "defended.onnx").write_bytes(content)
    name_files(copied / "model.json", {"defended.onnx": {"sha256": sha256(content)}})

    load_engine(copied).close()  # ONNX Runtime has the bits
    with pytest.raises(ValueError, match="this engine does not give the answers that the export is known to give"):
        load_engine(copied, providers=["OpenVINO"])


@pytest.mark.skipif(not computes_in_bfloat16(), reason="is about a CPU that has bfloat16")
def test_openvino_in_bfloat16_loses_the_noise_and_is_refused_whole(folder):
    with pytest.raises(ValueError, match="this engine does not give the answers"):
        load_engine(folder, providers=[BFLOAT16])


@pytest.mark.parametrize(
    ("provider", "told"),
    [
        (("OpenVINO", {"NO_SUCH": 1}), "OpenVINO refuses .*NO_SUCH"),
        (("OpenVINO", {"DEVICE": "NO_SUCH"}), "OpenVINO refuses"),
    ],
)
def test_what_openvino_does_not_know_is_refused(folder, provider, told):
    with pytest.raises(ValueError, match=told):
        load_engine(folder, providers=[provider])


def test_a_damaged_file_is_refused_by_openvino_in_one_line(folder, tmp_path):
    (tmp_path / "defended.onnx").write_bytes((folder / "defended.onnx").read_bytes()[:1000])

    with pytest.raises(ValueError, match=r"^OpenVINO refuses .*defended\.onnx: [^\n]*$"):
        load_engine(tmp_path / "defended.onnx", providers=["OpenVINO"])


@pytest.mark.slow
def test_packages_of_torch_answer_as_onnx_runtime_does_and_are_for_one_torch_and_cpu(copied, checkpoint, images):
    written = export_pt2(checkpoint, copied, shape=(1, 12, 12))

    assert sorted(path.name for path in written) == ["classifier.pt2", "defended.pt2", "step.pt2"]
    with load_engine(copied) as engine:
        expected = engine(images.numpy(), seed=2**40)
    for driven in (False, True):
        with load_engine(copied, providers=["PT2"], driven=driven) as engine:
            got = engine(images.numpy(), seed=2**40)
        assert (got.steps == expected.steps).all()
    facts = read(copied / "model.json")["files"]["step.pt2"]
    name_files(copied / "model.json", {"step.pt2": {**facts, "built_by": "torch 1.0 for ABACUS"}})
    with pytest.raises(ValueError, match=r"was built by torch 1\.0 for ABACUS, and here is torch"):
        load_engine(copied, providers=["PT2"], driven=True)


def test_a_file_that_is_no_package_is_refused(copied, folder):
    (copied / "step.pt2").write_bytes(b"not a package")
    facts = {"sha256": sha256(b"not a package"), "inputs": {}}
    name_files(copied / "model.json", {"step.pt2": facts, "classifier.pt2": facts})

    with pytest.raises(ValueError, match="was built by None"):
        load_engine(copied / "step.pt2", providers=["PT2"])
