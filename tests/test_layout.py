"""The house: what is a link, what is not a package, and what importing fastdef costs."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["kernels", "export"])
def test_the_package_links_to_the_top_level_folder(name):
    link = ROOT / "fastdef" / name

    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert not (ROOT / name / "__init__.py").exists()  # it would hide another package of that name


@pytest.mark.parametrize("name", ["fastdef.kernels", "fastdef.export"])
def test_the_linked_folders_import_as_parts_of_the_package(name):
    assert importlib.import_module(name).__name__ == name


def test_importing_fastdef_needs_torch_alone():
    heavy = ["triton", "onnx", "onnxruntime", "matplotlib", "pyarrow", "PIL", "rich", "typer", "safetensors"]
    program = (
        "import sys, torch; before = set(sys.modules); import fastdef;"
        f"print([name for name in {heavy} if name in set(sys.modules) - before])"
    )

    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there():
    fastdef = importlib.import_module("fastdef")

    assert all(hasattr(fastdef, name) for name in fastdef.__all__)
    assert len(fastdef.__all__) <= 16


def test_the_version_is_said_once_and_cited():
    project = (ROOT / "pyproject.toml").read_text()
    cited = (ROOT / "CITATION.cff").read_text()

    assert 'version = { attr = "fastdef._version.VERSION" }' in project
    assert f"\nversion: {importlib.import_module('fastdef').__version__}\n" in cited


def test_the_workflow_runs_what_a_contributor_runs_on_the_oldest_python_and_a_new_one():
    yaml = pytest.importorskip("yaml")
    project = (ROOT / "pyproject.toml").read_text()
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["ci"]

    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest, *_ = job["strategy"]["matrix"]["python"]
    assert f'requires-python = ">={oldest}"' in project
    for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]:
        assert hook["entry"].startswith((".venv/bin/ruff", ".venv/bin/python -m tools.readme"))
