import json

import pytest


def test_export_writes_the_files_and_checks_them_part_by_part(run, model_file, tmp_path):
    command = [
        "export",
        model_file,
        "--out",
        tmp_path / "out",
        "--limit",
        "4",
        "--triton-repository",
        tmp_path / "served",
    ]

    status, out, _ = run(*command, "--name", "guard", "--json", tmp_path / "figures.json")

    figures = json.loads((tmp_path / "figures.json").read_text())
    assert status == 0
    assert figures["files"]["defended.onnx"] == (tmp_path / "out" / "defended.onnx").stat().st_size
    assert [one["images"] for one in figures["parity"]].count("attacked") == out.count("4 attacked images")
    assert (tmp_path / "out" / "defended.onnx").is_file()
    assert (tmp_path / "served" / "guard" / "config.pbtxt").is_file()
    assert "4 clean images, classifier.onnx: probabilities" in out
    assert "4 attacked images, step.onnx, driven: steps equal for 100.0%" in out


@pytest.mark.slow
def test_engines_are_written_beside_the_files(run, model_file, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")

    status, out, _ = run(
        "export", model_file, "--out", tmp_path, "--no-check", "--format", "tensorrt", "--batches", "1,2,4"
    )

    assert status == 0
    assert f"wrote {tmp_path / 'defended.engine'}" in out
    assert json.loads((tmp_path / "model.json").read_text())["files"]["step.engine"]["batches"] == [1, 2, 4]


@pytest.mark.slow
def test_small_classifiers_come_with_their_accuracy(run, model_file, tmp_path):
    status, out, _ = run("export", model_file, "--out", tmp_path, "--no-check", "--small", "--limit", "8")

    assert status == 0
    assert "clean, accuracy on 8 images: classifier.onnx" in out
    assert (tmp_path / "classifier.int8.onnx").is_file()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--size", "20"], "holds fashion-mnist in 28 x 28"),
        (["--format", "coreml"], "--format needs to be among onnx, openvino, pt2, tensorrt, got 'coreml'"),
        (["--batches", "1;2"], "--batches needs three sizes"),
        (["--batches", "4,2,1"], "three rising batches"),
    ],
)
def test_wrong_settings_are_refused(refuse, model_file, tmp_path, wrong, told):
    assert told in refuse("export", model_file, "--out", tmp_path / "out", *wrong)
