"""The scripts and notebooks in examples do their work, with smaller numbers where they take some."""

import json
import runpy
import sys

import matplotlib.pyplot as plt
import pytest
import torch

from tests.docs.blocks import furnish
from tests.timm_import import import_timm
from tools.readme import ROOT

EXAMPLES = ROOT / "examples"
SCRIPTS = {
    "defend_timm_model.py": ["photos", "mine.safetensors", "model.safetensors", "--size", "32"],
    "own_loop.py": [],
    "attack_with_foolbox.py": ["--images", "8", "--steps", "2"],
    "run_onnx_alone.py": ["deployed"],
}


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    timm = import_timm()
    furnish(tmp_path, "", timm.create_model)
    monkeypatch.chdir(tmp_path)


def run(monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [name, *SCRIPTS[name]])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_script_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)


def test_a_network_of_timm_is_defended_and_its_file_loads(monkeypatch, capsys):
    from fastdef import load

    run(monkeypatch, "defend_timm_model.py")

    assert load("model.safetensors").defense["kind"] == "active"
    assert "steps" in capsys.readouterr().out


def test_a_loop_of_one_s_own_gives_every_request_a_result(monkeypatch, capsys):
    run(monkeypatch, "own_loop.py")

    lines = capsys.readouterr().out.splitlines()
    assert sorted(int(line.partition(":")[0]) for line in lines) == list(range(64))


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.*namespace:DeprecationWarning")  # Foolbox's, on its import
def test_a_library_attacks_a_defense(monkeypatch, capsys):
    pytest.importorskip("foolbox")

    run(monkeypatch, "attack_with_foolbox.py")

    assert "attacked: " in capsys.readouterr().out


@pytest.mark.slow  # exports
def test_an_export_runs_without_fastdef_and_refuses_an_engine_that_answers_otherwise(monkeypatch, capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    from fastdef import export_onnx
    from fastdef.defense import ActiveDefense
    from fastdef.nn import build, parse_architecture

    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", num_classes=10, in_channels=1)).eval()
    export_onnx(ActiveDefense(model, beta=3.0, max_steps=4, compile=False), tmp_path / "deployed", shape=(1, 12, 12))
    run(monkeypatch, "run_onnx_alone.py")
    assert "steps" in capsys.readouterr().out

    manifest = json.loads((tmp_path / "deployed" / "model.json").read_text())
    manifest["known_answers"]["steps"][0] += 1
    (tmp_path / "deployed" / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match="steps, PyTorch"):
        run(monkeypatch, "run_onnx_alone.py")


@pytest.mark.parametrize("name", [path.name for path in EXAMPLES.glob("*.ipynb")])
def test_a_notebook_runs_from_its_first_cell_to_its_last(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    cells = json.loads((EXAMPLES / name).read_text())["cells"]
    names = {"__name__": "__main__"}

    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), names)

    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
