import sys

import pytest

from fastdef.cli import main


@pytest.fixture(scope="module")
def exported(model_file, tmp_path_factory):
    """An export with OpenVINO's files; not to be written to."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    command = ["fastdef", "export", model_file, "--out", folder, "--no-check", "--format", "openvino"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


def test_engines_that_give_the_known_answers_are_named_with_their_files(run, exported):
    status, out, _ = run("verify", exported, "--engine", "onnxruntime", "--engine", "openvino")

    assert status == 0
    assert out.splitlines() == [
        "onnxruntime: defended.onnx gives the known answers",
        "onnxruntime: step.onnx, classifier.onnx gives the known answers",
        "openvino: defended.xml gives the known answers",
        "openvino: step.xml, classifier.xml gives the known answers",
    ]


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("coreml", "--engine needs to be among onnxruntime"),
        ("onnxruntime-cuda", "load_engine needs providers among"),
        ("pt2", "an export for this engine needs a classifier.pt2"),
    ],
)
def test_one_that_is_not_to_be_had_is_refused(refuse, exported, engine, told):
    assert told in refuse("verify", exported, "--engine", engine)
