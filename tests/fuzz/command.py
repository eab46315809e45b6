"""The command line as an entrance: bytes choose a command, its options and hostile values for them."""

import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import typer.main
from PIL import Image
from torch import nn

from fastdef.checkpoint import save
from fastdef.cli import app, main
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture
from tests.fuzz.entrances import CLASSES, SHAPE, Entrance

# Command lines that do their work, and what is said last: nothing takes hours, compiles, or opens a port.
_TRAIN = ["--data", "any", "--root", "data", "--architecture", "wrn-10-1", "--out", "out"]
_BRIEF = ["--epochs", "1", "--batch-size", "8", "--no-compile"]
_MISSING = ["--model", "missing"]
COMMANDS = (
    (
        ["evaluate", "model.safetensors", "--data", "any", "--root", "data"],
        ["--steps", "1", "--no-compile"],
    ),
    (
        ["evaluate-adaptive", "missing", "--data", "any", "--root", "data", "--report", "out"],
        ["--rows", "9"],
    ),
    (["defend", "model.safetensors", "data/test/a/0.png"], []),
    (["calibrate", "model.safetensors", "--data", "any", "--root", "data"], ["--max-steps", "2"]),
    (["import", "model.pt", "--architecture", "wrn-10-1", "--in-channels", "1", "--out", "result.json"], []),
    (["evaluate-afa", "model.safetensors", "--data", "any", "--root", "data"], ["--steps", "1", "--eps", "0,8"]),
    (["export", "model.safetensors", "--out", "out"], ["--data", "none", "--check"]),
    (["serve", "model.safetensors"], ["--size", "0"]),
    (["demo"], ["--limit", "1"]),
    (["train", "smoothing", *_TRAIN], _BRIEF),
    (["train", "afa", *_TRAIN, "--branches", "2"], [*_BRIEF, "--fusing-epochs", "1"]),
    (["bench", "defense", "--root", "data", "--data", "any"], _MISSING),
    (["bench", "solvers", "--root", "data", "--data", "any"], _MISSING),
    (["bench", "engine", "--root", "data", "--data", "any"], _MISSING),
    (["train"], []),
    (["nonsense"], []),
    ([], []),
)
_NEVER = ("--download", "--compile", "--install-completion")  # the last writes into the shell's own files, as asked
_VALUES = (
    *(
        "",
        " ",
        "-",
        "--",
        "0",
        "1",
        "2",
        "-1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e309",
        "1e-320",
        "9" * 30,
        "-" + "9" * 30,
    ),
    *(
        "0x10",
        "\u0661\u0662",
        "1,2",
        "1,,2",
        ",",
        "0,8",
        "nan,1",
        "true",
        "None",
        "[]",
        "{}",
        "%s",
        "{x}",
        "\\",
        "'",
        "a\nb",
    ),
    *(
        "\x00",
        "\udcff",
        "\U0001f600",
        "a" * 5000,
        "/dev/null",
        "/dev/full",
        "/proc/self/mem",
        ".",
        "~",
        "*",
    ),
    *(
        "cpu",
        "cuda",
        "meta",
        "cpu:7",
        "mps",
        "float16",
        "bfloat16",
        "onecycle",
        "step",
        "margin",
        "train",
        "all",
        "fit",
    ),
    *(
        "wrn-10-1",
        "wrn-10-0",
        "wrn-11-1",
        "wrn-10-99999999999",
        "resnet-18",
        "preactresnet-18",
        "block1",
        "fc",
        "conv1",
    ),
    *("trades", "standard", "layerwise", "cifar10", "fashion-mnist", "any", "data", "model.safetensors", "model.pt"),
    *("data/test/a/0.png", "data/test", "out", "out/deeper", "result.json", "figure.png", "empty"),
)


def arguments(content: bytes) -> list[str]:
    """A command line of the first byte's kind, which each further pair changes: where, and by what value."""
    words, last = COMMANDS[content[0] % len(COMMANDS)] if content else COMMANDS[-1]
    words, options = list(words), _options(words)
    place = 1
    while place + 1 < len(content) and len(words) < 40:
        where, value = content[place], content[place + 1]
        place += 2
        if value == 255:  # the text that follows, of the next byte's length
            length = content[place] % 32 if place < len(content) else 0
            text = content[place + 1 : place + 1 + length].decode(errors="surrogateescape")
            text = text.replace("/", "|").replace("..", "::")  # or it would be asked to write anywhere
            place += 1 + length
        else:
            text = _VALUES[value % len(_VALUES)]
        if where < 32 and len(words) > 2:
            words[1 + where % (len(words) - 1)] = text
        elif where < 48 or not options:
            words.append(text)
        elif where < 64:
            words.append(options[where % len(options)])
        else:
            words += [options[where % len(options)], text]
    return [word for word in words if not word.startswith(_NEVER)] + last


def _options(words: list[str]) -> list[str]:
    found = typer.main.get_command(app)
    for name in words:
        if not hasattr(found, "commands"):
            break
        found = found.commands.get(name)
    return [name for option in getattr(found, "params", []) for name in option.opts if name.startswith("--")]


def command_lines(folder: Path) -> Entrance:
    """Status 0, 1 or 2, one line for a refusal, and no file but in the folder it is run in, or beside one it names."""
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1)).eval()
    tempfile.tempdir = str(folder / "temporary")
    os.environ |= dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"), tempfile.tempdir)
    written: list[str] = []
    sys.addaudithook(lambda event, given: written.append(os.fspath(given[0])) if _writes(event, given) else None)

    def enter(content: bytes) -> None:
        words = arguments(content)
        _furnish(folder, model)
        written.clear()
        with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _at(folder):
            status, told = _run(words)
            asked = {folder, *(Path(word).parent for word in words if word.startswith("/"))}
            outside = [path for path in written if not any(_inside(path, place) for place in asked)]
        assert status in (0, 1, 2), (words, status, told)
        assert "Traceback" not in told, (words, told)
        assert sum(line.startswith("fastdef: ") for line in told.splitlines()) <= 1, (words, told)
        assert not outside, (words, outside)

    return Entrance(tuple(bytes([number]) for number in range(len(COMMANDS))), enter)


def _furnish(folder: Path, model: nn.Module) -> None:
    """Nothing but a data set of a few images, a model for them, one of other code, and an empty folder."""
    for path in folder.iterdir():
        if path.name != "data":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for split, count in (("train", 8), ("test", 1)) if not (folder / "data").is_dir() else ():
        for name in "ab":
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.full(SHAPE[1:], 20 * number + ord(name), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(folder / "data" / split / name / f"{number}.png")
    for name in ("empty", "temporary"):
        (folder / name).mkdir()
    defense = ActiveDefense(model, beta=3.0, max_steps=2, compile=False)
    described = {"architecture": architecture_of(model), "classes": CLASSES, "training": {"shape": list(SHAPE)}}
    save(folder / "model.safetensors", model, defense=defense.config(), **described)
    torch.save(model.state_dict(), folder / "model.pt")


def _run(words: list[str]) -> tuple[object, str]:
    """Status, and what was told on both streams, which are as strict as a terminal's."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors) for errors in ("strict", "backslashreplace")]
    kept = sys.argv
    sys.argv = ["fastdef", *words]
    status: object = None
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            main()
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        sys.argv = kept
    for stream in streams:
        stream.flush()
    return status, "".join(stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _writes(event: str, given: tuple[object, ...]) -> bool:
    if event == "open":
        path, _, flags = given
        return isinstance(path, str | os.PathLike) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))  # type: ignore[operator]
    return event == "os.mkdir" and not os.path.lexists(given[0])  # type: ignore[arg-type]


def _inside(path: str, folder: Path) -> bool:
    return path == os.devnull or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
