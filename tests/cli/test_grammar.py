"""One grammar: an option means the same wherever it stands, and what people read has the field's words."""

import re

import pytest
import typer

from fastdef.cli import app
from tools.readme import PAGES, ROOT

# Ours, in place of the field's: an adaptive or a static attack, accuracy, evaluated, noise samples, the plain loop.
_OURS = re.compile(
    r"attackers? who (?:do |does )?(?:not )?know|knows? (?:of |about )?the defense|answered right|honest suite"
    r"|redraw|rescored|written plainly|tight step|fastdef strengths|\b(?:tally|lease|craft(?:ed|ing)?|told|asked)\b",
    re.IGNORECASE,
)
_DATA = ("root", "download", "background", "class_order", "size")


def leaves(name, command):
    if not hasattr(command, "commands"):
        return {name: command}
    return {
        key: leaf for below, one in command.commands.items() for key, leaf in leaves(f"{name} {below}", one).items()
    }


COMMANDS = leaves("fastdef", typer.main.get_command(app))


def options_of(command):
    return {parameter.name: parameter for parameter in command.params if parameter.param_type_name == "option"}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_is_called_what_it_is_called_elsewhere(name):
    options = options_of(COMMANDS[name])

    assert not {"count", "batch", "output", "images", "dataset", "num_steps", "gpu"} & set(options)
    if "data" in options and options["data"].required:
        assert set(_DATA) <= set(options), name
        assert {options[one].rich_help_panel for one in ("data", *_DATA)} == {"Data"}
    if name not in ("fastdef defend", "fastdef serve", "fastdef card"):  # whose output is no table of figures
        assert options["json_file"].opts == ["--json"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_does(name):
    command = COMMANDS[name]

    assert command.help
    assert not _OURS.search(command.help), _OURS.search(command.help)
    for parameter in command.params:
        assert not _OURS.search(parameter.help or ""), parameter.name


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "readings.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_pages_have_the_words_of_the_field(page):
    assert not _OURS.search(page.read_text()), _OURS.search(page.read_text())


def test_help_is_grouped_and_offers_completion(run):
    status, out, _ = run("--help")

    assert status == 0
    for group in ("Start here", "Evaluate", "Use", "Model files", "Train", "Measure", "--install-completion"):
        assert group in out
