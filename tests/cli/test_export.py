def test_export_writes_the_files_and_checks_them(run, model_file, tmp_path):
    status, out, _ = run("export", model_file, "--out", tmp_path / "out", "--limit", "4")

    assert status == 0
    assert (tmp_path / "out" / "defended.onnx").is_file()
    assert "clean: 4 images: steps equal for 100.0%" in out
    assert "attacked: 4 images" in out


def test_data_of_another_shape_is_refused(refuse, model_file, tmp_path):
    assert "images of (1, 20, 20)" in refuse("export", model_file, "--out", tmp_path / "out", "--size", "20")
