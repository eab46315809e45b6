"""What the commands have in common."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
import typer
from rich.console import Console

from fastdef.checkpoint import LARGEST
from fastdef.cli._ranks import check_own_device

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Source = Annotated[
    str | None, typer.Option(help="package.module:function that builds the model, where the file says that one does")
]
Json = Annotated[Path | None, typer.Option("--json", help="write the figures here")]
Size = Annotated[int | None, typer.Option(min=1, max=LARGEST, help="height and width; the model's own if it says")]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPE = f"of the networks: {', '.join(DTYPES)}, or auto (see calibrate --bfloat16)"
DType = Annotated[str, typer.Option(help=DTYPE)]

DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> torch.device:
    """The device of that name; of several processes on CUDA, each has its own.

    Raises:
        ValueError: if it is none, or not there, or not there for every process.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which on the meta device there is not
    except (RuntimeError, AssertionError, ImportError) as error:  # without CUDA the second, without a plug-in the third
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device needs a device that is there, got {name!r}: {reason}") from error
    return check_own_device(device)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on a terminal's stderr, for what takes a while and cannot say how long."""
    with Console(stderr=True).status(what):
        yield


Number = TypeVar("Number", int, float)


def parse_list(text: str, kind: Callable[[str], Number], *, option: str, needs: str) -> tuple[Number, ...]:
    """Numbers out of a text such as ``75,90``.

    Args:
        text: numbers separated by commas.
        kind: int or float.
        option: that was given the text.
        needs: the numbers in words, for the refusal: "epochs", say.

    Raises:
        ValueError: for anything else.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} needs {needs} separated by commas, got {text!r}") from error


def parse_dtype(name: str) -> torch.dtype | Literal["auto"]:
    """Of the networks, as a defense takes it.

    Raises:
        ValueError: for another.
    """
    if name == "auto":
        return "auto"
    if name not in DTYPES:
        raise ValueError(f"--dtype needs one of {', '.join(DTYPES)}, auto, got {name!r}")
    return DTYPES[name]


def tell_dtype() -> None:
    """A line on stderr where a defense chooses its dtype."""
    logger = logging.getLogger("fastdef.defense")
    logger.handlers, logger.propagate = [_Notes()], False
    logger.setLevel(logging.INFO)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"note: {record.getMessage()}", err=True)
