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
