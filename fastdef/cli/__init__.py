"""The ``fastdef`` command: one file a subcommand, each parses, calls one library function, and prints."""

import sys
from collections.abc import Callable
from typing import Annotated

import torch
import typer

import fastdef
from fastdef import distributed
from fastdef.cli._ranks import LOST, joined, tell
from fastdef.cli._shared import tell_dtype
from fastdef.cli.bench import defense, solvers
from fastdef.cli.bench_formats import formats
from fastdef.cli.calibrate import calibrate
from fastdef.cli.card import card
from fastdef.cli.defend import defend
from fastdef.cli.demo import demo
from fastdef.cli.evaluate import evaluate
from fastdef.cli.evaluate_adaptive import evaluate_adaptive
from fastdef.cli.evaluate_afa import evaluate_afa
from fastdef.cli.export import export
from fastdef.cli.import_ import import_
from fastdef.cli.info import info
from fastdef.cli.layers import layers
from fastdef.cli.serve import serve
from fastdef.cli.train_afa import afa
from fastdef.cli.train_smoothing import smoothing
from fastdef.cli.verify import verify
from fastdef.distributed import RankLost

app = typer.Typer(
    help="A compiled, high-performance defense runtime for image classifiers.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
train = typer.Typer(help="Train a classifier with a defense.", no_args_is_help=True)
bench = typer.Typer(help="How fast it is here.", no_args_is_help=True)
_GROUPS: dict[str, dict[str, Callable[..., None]]] = {  # as --help has them
    "Start here": {"demo": demo},
    "Evaluate": {"evaluate": evaluate, "evaluate-adaptive": evaluate_adaptive, "evaluate-afa": evaluate_afa},
    "Use": {"defend": defend, "serve": serve, "export": export, "verify": verify},
    "Model files": {"info": info, "card": card, "import": import_, "layers": layers, "calibrate": calibrate},
}
for _group, _commands in _GROUPS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_group)(_command)
train.command()(smoothing)
train.command()(afa)
bench.command()(defense)
bench.command()(solvers)
bench.command()(formats)
app.add_typer(train, name="train", rich_help_panel="Train")
app.add_typer(bench, name="bench", rich_help_panel="Measure")
_SHARED = ("train", "evaluate", "evaluate-adaptive", "evaluate-afa")  # what several processes do together


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    if version:
        typer.echo(fastdef.__version__)
        raise typer.Exit
    if distributed.world_size() > 1 and context.invoked_subcommand not in _SHARED:
        raise ValueError(
            f"{context.invoked_subcommand} needs one process, got {distributed.world_size()}: "
            f"only {', '.join(_SHARED)} share work"
        )


def main() -> None:
    """Run the command. A refusal is one line on stderr and status 2; a traceback is a bug."""
    try:
        with joined():
            tell_dtype()
            app()
    except ValueError as error:
        _end(" ".join(str(error).split()), 2)
    except OSError as error:
        _end(f"{error.filename or 'the system'}: {error.strerror or error}", 2)
    except RankLost:
        _end(LOST, 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _end("out of memory: smaller batches, images or models, or fewer images, may fit", 1)


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has a class for it on CUDA alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _end(reason: str, status: int) -> None:
    tell(reason, sys.stderr.write)
    sys.exit(status)
