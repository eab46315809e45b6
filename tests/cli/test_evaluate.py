import inspect
import json
import sys
from types import SimpleNamespace

import pytest
import torch

import fastdef
from fastdef.cli.evaluate_adaptive import evaluate_adaptive
from fastdef.data import write_idx
from fastdef.evaluation.adaptive import BUDGETS
from fastdef.evaluation.adaptive.suite import ROWS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_idx(root, "test", images, torch.arange(20) % 10)
    return ["--data", "fashion-mnist", "--root", str(root)]


def test_the_table_has_counts_and_intervals_and_the_file_too(run, model_file, data, tmp_path):
    arguments = ["--limit", "12", "--steps", "2", "--no-compile", "--json", tmp_path / "out.json"]

    status, out, _ = run("evaluate", model_file, *data, *arguments)

    found = json.loads((tmp_path / "out.json").read_text())
    assert status == 0
    assert "/12" in out
    assert "interval" in out
    assert list(found["rows"]) == ["clean", "attacked", "clean, defended", "attacked, defended"]
    assert found["rows"]["attacked, defended"]["count"] == 12
    assert found["rows"]["attacked, defended"]["steps_max"] <= 4


def test_the_defense_can_be_left_out(run, model_file, data, tmp_path):
    run("evaluate", model_file, *data, "--limit", "4", "--steps", "1", "--undefended", "--json", tmp_path / "out.json")

    assert list(json.loads((tmp_path / "out.json").read_text())["rows"]) == ["clean", "attacked"]


def test_refusals_are_one_line(refuse, model_file, data, tmp_path):
    assert "losses among" in refuse("evaluate", model_file, *data, "--loss", "hinge")
    assert "--eps needs a radius in 255ths, from 0 to 255, got 300" in refuse(
        "evaluate", model_file, *data, "--eps", "300"
    )
    assert "eps > 0" in refuse("evaluate", model_file, *data, "--eps", "0")
    assert "a split among" in refuse("evaluate", model_file, *data, "--split", "dev")
    missing = tmp_path / "no" / "such" / "out.json"
    assert "out.json" in refuse(
        "evaluate", model_file, *data, "--limit", "2", "--steps", "1", "--undefended", "--json", missing
    )


DEFENSE = (["--delta", "0"], ["--max-steps", "2"], ["--outer-loops", "2"], ["--dtype", "bfloat16"])


@pytest.mark.parametrize("command", ["evaluate", "evaluate-adaptive"])
@pytest.mark.parametrize("option", DEFENSE)
def test_an_option_of_the_defense_is_refused_where_there_is_none(refuse, bare_file, data, command, option):
    error = refuse(command, bare_file, *data, *option)

    assert f"{option[0]} needs a model with a defense, and this one has none" in error


@pytest.mark.parametrize("option", DEFENSE)
def test_an_option_of_the_defense_is_refused_where_it_is_left_out(refuse, model_file, data, option):
    error = refuse("evaluate", model_file, *data, "--undefended", *option)

    assert f"{option[0]} is for the defense, and --undefended leaves it out" in error


@pytest.mark.parametrize("option", [["--undefended"], *DEFENSE])
def test_an_option_of_the_defense_is_refused_for_an_export(refuse, data, tmp_path, option):
    error = refuse("evaluate-adaptive", tmp_path, *data, *option)

    assert f"{option[0]} is for a model file: an export is attacked as it was written" in error


SMOKE = ["--limit", "2"]


def test_the_adaptive_evaluation_prints_its_headline_and_writes_its_report(run, model_file, data, tmp_path):
    """Row 0 alone has no headline; a model with random weights fails its checks, which is status 1."""
    status, out, _ = run(
        "evaluate-adaptive",
        model_file,
        *data,
        *SMOKE,
        "--rows",
        "0,3",
        "--report",
        tmp_path / "r",
        "--json",
        tmp_path / "o.json",
    )

    found = json.loads((tmp_path / "o.json").read_text())
    assert status == (0 if found["passed"] else 1)
    assert "leaves" in " ".join(out.split())
    assert found["settings"]["budget"]["name"] == "smoke"
    assert found["headline_of"].startswith("3 ")
    assert (tmp_path / "r" / "report.html").is_file()
    assert json.loads((tmp_path / "r" / "report.json").read_text()) == found


def test_the_adaptive_evaluation_goes_on_where_it_was(run, model_file, data, tmp_path):
    arguments = [model_file, *data, *SMOKE, "--rows", "0", "--report", tmp_path]

    run("evaluate-adaptive", *arguments, "--undefended", "--json", tmp_path / "a.json")
    run("evaluate-adaptive", *arguments, "--undefended", "--json", tmp_path / "b.json", "--resume")

    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_refusals_of_the_adaptive_evaluation_are_one_line(refuse, model_file, data, tmp_path):
    arguments = ["evaluate-adaptive", model_file, *data]

    assert "--budget needs one of screen, smoke, quick, standard, full" in refuse(*arguments, "--budget", "vast")
    assert "--eps needs a radius in 255ths, from 0 to 255, got -8" in refuse(*arguments, "--eps", "-8")
    assert "--rows needs numbers from 0 to 8" in refuse(*arguments, "--rows", "a")
    assert "rows from 0 to 8" in refuse(*arguments, "--rows", "9")
    assert "--report folder" in refuse(*arguments, "--resume")
    assert "--dtype needs one of" in refuse(*arguments, "--dtype", "int8")
    assert "no such file" in refuse(*arguments, "--surrogate", tmp_path / "none.safetensors").lower()
    assert "there is no" in refuse("evaluate-adaptive", tmp_path, *data)


def test_a_report_that_could_not_be_written_is_refused_before_the_work(monkeypatch, refuse, model_file, data, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)

    error = refuse("evaluate-adaptive", model_file, *data, *SMOKE, "--rows", "0", "--report", tmp_path / "r")

    assert "needs jinja2: pip install 'fastdef[eval]'" in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("evaluate", ["evaluate", "--steps", "1"]),
        ("evaluate_adaptive", ["evaluate-adaptive", "--rows", "1", "--undefended"]),
        ("evaluate_afa", ["evaluate-afa", "--eps", "0", "--figure", "figure.png", "--steps", "1"]),
    ],
)
def test_of_several_processes_the_first_alone_writes(monkeypatch, run, model_file, data, tmp_path, module, command):
    name, *options = command
    monkeypatch.setattr(sys.modules[f"fastdef.cli.{module}"], "distributed", SimpleNamespace(rank=lambda: 1))
    monkeypatch.chdir(tmp_path)

    status, _, _ = run(name, model_file, *data, "--limit", "2", *options, "--json", "out.json")

    assert status in (0, 1)  # a model with random weights does not pass the adaptive evaluation's checks on itself
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saturated(bare_file, tmp_path_factory):
    """A model sure of everything, and images that it answers right."""
    root = tmp_path_factory.mktemp("saturated")
    checkpoint = fastdef.load(bare_file)
    model = checkpoint.model.eval()
    with torch.no_grad():
        model.fc.weight *= 1e5
        images = torch.randint(0, 256, (8, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        write_idx(root, "test", images, model(images.float() / 255).argmax(1))
    fastdef.save(root / "model.safetensors", model, architecture=checkpoint.architecture, classes=checkpoint.classes)
    return [root / "model.safetensors", "--data", "fashion-mnist", "--root", str(root), "--steps", "1"]


def test_an_accuracy_whose_gradients_vanished_is_no_figure(run, saturated, tmp_path):
    status, out, err = run("evaluate", *saturated, "--loss", "cross_entropy", "--json", tmp_path / "out.json")

    assert status == 1
    assert "attacked: 8 of 8 images stand because the attack's gradients vanished" in err
    assert "figure" in out  # in a cell that a narrow terminal wraps
    assert json.loads((tmp_path / "out.json").read_text())["refusals"] == [err.strip()]


def test_another_loss_of_the_same_attack_makes_it_one(run, saturated):
    assert run("evaluate", *saturated)[0] == 0


def test_every_row_runs_where_none_is_chosen():
    assert inspect.signature(evaluate_adaptive).parameters["rows"].default is None
    assert {name: budget.rows for name, budget in BUDGETS.items() if budget.rows != tuple(range(len(ROWS)))} == {
        "screen": (0, 3, 6)
    }
