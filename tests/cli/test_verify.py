import pytest


@pytest.fixture
def exported(run, model_file, tmp_path):
    status, _, _ = run("export", model_file, "--out", tmp_path / "out", "--no-check", "--format", "openvino")
    assert status == 0
    return tmp_path / "out"


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
