"""What is trusted: no file's code runs, nothing is fetched unasked, and every package that is installed is pinned."""

import ast
import importlib.metadata
import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdef.checkpoint import import_foreign, load
from fastdef.data import decode_image, load_dataset
from fastdef.evaluation.adaptive.journal import Journal
from fastdef.export.engine import load_engine
from fastdef.nn import parse_architecture
from fastdef.training.state import State

ROOT = Path(__file__).parents[1]
OURS = ["fastdef", "kernels", "export", "benchmarks"]
BUILTINS = "S102,S301,S302,S307,S506"  # exec, pickle, marshal, eval, yaml.load
BANNED = ["pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "numpy.load"]
BANNED += [f"torch.{name}" for name in ("load", "save", "jit.load", "hub", "package")]


def linted(*places, given=None):
    """(file, line) of everything in our sources, or in the text given, that could run what it reads."""
    pytest.importorskip("ruff", reason="needs fastdef[dev]")
    banned = ", ".join(f'"{name}" = {{ msg = "" }}' for name in BANNED)
    rules = ["--select", f"{BUILTINS},TID251", "--config", f"lint.flake8-tidy-imports.banned-api = {{ {banned} }}"]
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--output-format", "json"]
    ended = subprocess.run([*command, *rules, *places], input=given, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode in (0, 1), ended.stderr
    return {(found["filename"], found["location"]["row"]) for found in json.loads(ended.stdout)}


def test_nothing_of_ours_runs_what_a_file_says_and_the_one_torch_load_reads_weights_only():
    ((file, row),) = linted(*OURS)

    source = Path(file).read_text()
    assert Path(file) == ROOT / "fastdef" / "checkpoint" / "_foreign_file.py"
    (call,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.lineno == row]
    assert ast.unparse(call.func) == "torch.load"
    assert [ast.unparse(word.value) for word in call.keywords if word.arg == "weights_only"] == ["True"]
    assert not [path for place in OURS for path in (ROOT / place).rglob("*.py") if "trust_remote" in path.read_text()]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch import load",
        "import torch; torch.load('x')",
        "import torch; torch.save(3, 'x')",
        "import torch; torch.hub.load('x', 'y')",
        "import numpy as np; np.load('x')",
        "import yaml; yaml.load('x')",
        "eval('1')",
        "exec('1')  # noqa: S102",
    ],
)
def test_each_way_to_run_a_file_would_be_found(line):
    assert linted("-", given=line)


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile(path, marker, *, zipped):
    path.parent.mkdir(parents=True, exist_ok=True)
    if zipped:
        torch.save({"state_dict": Bomb(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    return path


ENTRANCES = {
    "model.safetensors": load,
    "model.pt": lambda path: import_foreign(path, parse_architecture("wrn-10-1")),
    "state.safetensors": lambda path: State.read(path.parent),
    "units/case-00000.safetensors": lambda path: Journal(path.parents[1], {}, {}, resume=True).read("case", 0),
    "settings.json": lambda path: Journal(path.parent, {}, {}, resume=True),
    "test-00000-of-00001.parquet": lambda path: load_dataset("fashion-mnist", "test", root=path.parent),
    "t10k-images-idx3-ubyte": lambda path: load_dataset("fashion-mnist", "test", root=path.parent),
    "test/shirt/1.png": lambda path: load_dataset("pictures", "test", root=path.parents[2]),
    "image.png": lambda path: decode_image(path.read_bytes(), channels=1, size=(12, 12)),
    "defended.onnx": lambda path: load_engine(path),
    "model.json": lambda path: load_engine(path.with_name("defended.onnx")),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ENTRANCES)
def test_no_entrance_unpickles_what_it_is_given(tmp_path, name, zipped):
    marker, place = tmp_path / "it ran", tmp_path / "place"
    for beside, content in {"settings.json": "{}", "t10k-labels-idx1-ubyte": "", "defended.onnx": ""}.items():
        place.mkdir(exist_ok=True)
        (place / beside).write_text(content)
    path = hostile(place / name, marker, zipped=zipped)

    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        ENTRANCES[name](path)

    assert not marker.exists()
    with path.open("rb") as file:  # and it is one: whoever does unpickle it, runs it
        pickle.load(file) if not zipped else torch.load(file, weights_only=False)
    assert marker.exists()


def watched(folder, *names):
    """What each of these paths asked for, in a process of their own."""
    program = [sys.executable, str(ROOT / "tests" / "audited_process.py"), str(folder), *names]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "seen.json").read_text())


def test_to_import_load_and_defend_asks_for_no_network_and_unpickles_nothing(tmp_path):
    seen = watched(tmp_path, "imported", "loaded", "defended", "downloaded", "unpickled")

    for path in ("imported", "loaded", "defended"):
        assert seen[path] == {"sockets": [], "left": [], "pickled": []}
    assert any("huggingface.co" in host for host in seen["downloaded"]["left"])  # or the watch would be blind
    assert seen["unpickled"]["pickled"]


@pytest.mark.slow  # exports
def test_to_evaluate_export_and_serve_asks_for_no_network_and_unpickles_nothing(tmp_path):
    for needed in ("onnxruntime", "onnxscript", "fastapi", "uvicorn"):
        pytest.importorskip(needed, reason="needs fastdef[export,serve]")

    seen = watched(tmp_path, "loaded", "defended", "evaluated", "exported", "answered", "served")

    assert not {path: asked for path, asked in seen.items() if asked["left"] or asked["pickled"]}
    assert [path for path, asked in seen.items() if asked["sockets"]] == ["served"]


def test_every_package_that_an_install_brings_is_pinned():
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    requirements = pytest.importorskip("packaging.requirements")
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                pinned[canonical(pin.name)] = pin.specifier
    if not pinned["torch"].contains(torch.__version__):
        pytest.skip(f"is about what make installs, and torch is {torch.__version__} here")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    chosen = ["export", "eval", "serve", "test", "docs", "dev"] + ["ray"] * bool(importlib.util.find_spec("ray"))
    asked = sum((extras[name] for name in chosen), project["dependencies"])

    installed = brought(requirements, asked)

    wrong = {name: got for name, got in installed.items() if name not in pinned or not pinned[name].contains(got)}
    assert len(installed) > 90
    assert not wrong


def brought(requirements, asked):
    """Name and version of every installed package that these requirements need, or what they need needs; but pip."""
    found, done, waiting = {}, set(), [(text, ()) for text in asked]
    while waiting:
        text, extras = waiting.pop()
        need = requirements.Requirement(text)
        name = canonical(need.name)
        meant = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if not meant or name == "pip" or (name, frozenset(need.extras)) in done:
            continue
        done.add((name, frozenset(need.extras)))
        if name == "torchvision" and not importlib.util.find_spec(name):
            continue  # has no build beside every torch, and the tests do without it
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version
        waiting += [(below, tuple(need.extras)) for below in distribution.requires or []]
    return found


def canonical(name):
    return name.lower().replace("_", "-").replace(".", "-")
