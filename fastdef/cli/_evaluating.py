"""What the commands that evaluate have in common: their options, and what stands before a model."""

from typing import Annotated, Any

import typer
from rich.console import Console

from fastdef.checkpoint import Checkpoint
from fastdef.cli._shared import DTYPE, parse_dtype
from fastdef.defense import ActiveDefense

Eps = Annotated[float, typer.Option(help="radius of the attacks, in 255ths", rich_help_panel="Attack")]
PANEL = "Defense"
Delta = Annotated[float | None, typer.Option(help="threshold of L_F, if not the calibrated one", rich_help_panel=PANEL)]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="steps an image may take", rich_help_panel=PANEL)]
OuterLoops = Annotated[int | None, typer.Option(min=1, help="runs of the defense averaged", rich_help_panel=PANEL)]
Undefended = Annotated[bool, typer.Option("--undefended", help="leave the defense out", rich_help_panel=PANEL)]
DType = Annotated[str | None, typer.Option(help=DTYPE, show_default="float32", rich_help_panel=PANEL)]
Seed = Annotated[int, typer.Option(help="of the attacks and of the defense's noise")]


def defense_options(*, undefended: bool, **options: Any) -> dict[str, Any]:
    """The options of the defense that were given.

    Raises:
        ValueError: for a dtype that there is not, or any of them beside ``--undefended``.
    """
    if undefended:
        refuse(options, "is for the defense, and --undefended leaves it out")
    if options["dtype"] is not None:
        parse_dtype(options["dtype"])
    return given(options)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are not at their default of None or False."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def refuse(options: dict[str, Any], reason: str) -> None:
    """Refuse the first of the options that was given: it would be ignored, and its user misled.

    Raises:
        ValueError: if any was.
    """
    for name in given(options):
        raise ValueError(f"--{name.replace('_', '-')} {reason}")


def report_refusals(sentences: list[str]) -> None:
    """Print why figures are none, and end with status 1 where any is."""
    for sentence in sentences:
        Console(stderr=True).print(sentence, highlight=False, soft_wrap=True)
    if sentences:
        raise typer.Exit(1)


def radius(eps: float) -> float:
    """In pixel units, from 255ths.

    Raises:
        ValueError: if it is not from 0 to 255.
    """
    if not 0 <= eps <= 255:
        raise ValueError(f"--eps needs a radius in 255ths, from 0 to 255, got {eps:g}")
    return eps / 255


def defense_of(
    checkpoint: Checkpoint, options: dict[str, Any], *, undefended: bool, seed: int, compile: bool
) -> ActiveDefense | None:
    """What stands before a model, if anything does.

    Raises:
        ValueError: for options where nothing does.
    """
    if checkpoint.defense is None:
        refuse(options, "needs a model with a defense, and this one has none")
        return None
    if undefended:
        return None
    chosen = dict(options)
    if "dtype" in chosen:
        chosen["dtype"] = parse_dtype(chosen["dtype"])
    return ActiveDefense.from_checkpoint(checkpoint, seed=seed, compile=compile, **chosen)
