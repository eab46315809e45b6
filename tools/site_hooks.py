"""Hooks of MkDocs: the page of commands, written from the commands themselves; roles of Sphinx in docstrings."""

import re
from typing import Any

import typer

PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page, with every command and its options in its place."""
    return markdown.replace(PLACE, "\n".join(_commands())) if PLACE in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """The page without what docstrings say to Sphinx of a name's kind."""
    return re.sub(r":(?:meth|class|func|data):(?=<code>)", "", html)


def _commands() -> list[str]:
    from fastdef.cli import app

    return [
        line for name, command in _leaves("fastdef", typer.main.get_command(app)) for line in _section(name, command)
    ]


def _leaves(name: str, command: Any) -> list[tuple[str, Any]]:
    """(full name, command) of everything that runs."""
    if not hasattr(command, "commands"):
        return [(name, command)]
    return [leaf for below, one in command.commands.items() for leaf in _leaves(f"{name} {below}", one)]


def _section(name: str, command: Any) -> list[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join([name, *(argument.name.upper() for argument in arguments), "[OPTIONS]"])
    help_text = " ".join((command.help or "").replace("|", "\\|").split())
    rows = [_row(argument.name.upper(), argument) for argument in arguments]
    rows += [_row(", ".join([*option.opts, *option.secondary_opts]), option) for option in options]
    return [f"## {name}", "", f"`{usage}`", "", help_text, "", "| option | | default |", "|---|---|---|", *rows, ""]


def _row(name: str, parameter: Any) -> str:
    default = parameter.default
    shown = (
        "required" if parameter.required else "" if default in (None, False) or callable(default) else f"`{default}`"
    )
    return f"| `{name}` | {(parameter.help or '').replace('|', ' or ')} | {shown} |"
