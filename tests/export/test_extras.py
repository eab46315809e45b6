from importlib.util import find_spec

import pytest

from fastdef import _validate
from fastdef.export.files import export_onnx
from fastdef.export.sessions import OnnxSession


@pytest.mark.parametrize(
    ("missing", "work"),
    [
        ("onnx", lambda checkpoint, folder: export_onnx(checkpoint, folder / "out", shape=(1, 12, 12))),
        ("onnxscript", lambda checkpoint, folder: export_onnx(checkpoint, folder / "out", shape=(1, 12, 12))),
        ("onnxruntime", lambda checkpoint, folder: OnnxSession(folder / "step.onnx", ["CPUExecutionProvider"])),
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(monkeypatch, checkpoint, tmp_path, missing, work):
    monkeypatch.setattr(_validate, "find_spec", lambda name: None if name == missing else find_spec(name))

    with pytest.raises(ValueError, match=rf"an export needs {missing}: pip install 'fastdef\[export\]'"):
        work(checkpoint, tmp_path)

    assert list(tmp_path.iterdir()) == []
