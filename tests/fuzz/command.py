"""The command line as an entrance: bytes choose a command, its options and hostile values for them."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import typer.main
from PIL import Image

from fastdef.checkpoint import save
from fastdef.cli import app, main
from fastdef.defense import ActiveDefense
from fastdef.nn import architecture_of, build, parse_architecture
from tests.fuzz.entrances import CLASSES, SHAPE, Entrance

COMMANDS = (
    ("evaluate",),
    ("defend",),
    ("calibrate",),
    ("import",),
    ("strengths",),
    ("export",),
    ("serve",),
    ("demo",),
    ("train", "smoothing"),
    ("train", "afa"),
    ("bench", "defense"),
    ("bench", "solvers"),
    ("bench", "engine"),
    ("train",),
    ("nonsense",),
    (),
)
# Said last, so that nothing takes hours, compiles, or fetches from a network. The first five may do their work; the
# others are kept from it by a file that is not there.
_LAST = {
    "evaluate": ["--suite", "static", "--steps", "1", "--limit", "1", "--no-compile"],
    "defend": ["--max-steps", "2", "--no-compile"],
    "calibrate": ["--max-steps", "2"],
    "strengths": ["--steps", "1", "--limit", "1", "--eps", "0,8"],
    "export": ["--data", "none", "--check"],
    "train": ["--root", "empty", "--no-compile"],
    "bench": ["--root", "empty"],
    "demo": ["--count", "1"],
}
_MODELLESS = ("export", "serve", "bench")
_NEVER = ("--download", "--compile", "--help", "--install-completion", "--show-completion")
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
        "../..",
        "/",
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
    """A command line: of each byte pair an option and a value for it; a value of 255 is the text that follows."""
    command = COMMANDS[content[0] % len(COMMANDS)] if content else ()
    options, words = _options(command), list(command)
    place = 1
    while place + 1 < len(content) and len(words) < 40:
        option, value = content[place], content[place + 1]
        place += 2
        if value == 255:
            length = content[place] % 32 if place < len(content) else 0
            text = content[place + 1 : place + 1 + length].decode(errors="surrogateescape")
            place += 1 + length
        else:
            text = _VALUES[value % len(_VALUES)]
        if option < 64 or not options:
            words.append(text)  # an argument, or an option that there is not
        elif option < 80:
            words.append(options[option % len(options)])
        else:
            words += [options[option % len(options)], text]
    name = command[0] if command else ""
    words = [word for word in words if not word.startswith(_NEVER)]
    if name in _MODELLESS:
        words = [word.replace("model.safetensors", "missing") for word in words]
    return words + _LAST.get(name, [])


def _options(command: tuple[str, ...]) -> list[str]:
    found = typer.main.get_command(app)
    for name in command:
        found = getattr(found, "commands", {}).get(name)
    return [name for option in getattr(found, "params", []) for name in option.opts if name.startswith("--")]


def command_lines(folder: Path) -> Entrance:
    """Status 0, 1 or 2, one line for a refusal, and not a file outside the folder it is run in."""
    _furnish(folder)
    written: list[str] = []
    sys.addaudithook(lambda event, given: written.append(os.fspath(given[0])) if _writes(event, given) else None)

    def enter(content: bytes) -> None:
        words = arguments(content)
        written.clear()
        with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _at(folder):
            status, told = _run(words)
            outside = [path for path in written if not _inside(path, folder)]
        assert status in (0, 1, 2), (words, status, told)
        assert "Traceback" not in told, (words, told)
        assert sum(line.startswith("fastdef: ") for line in told.splitlines()) <= 1, (words, told)
        assert not outside, (words, outside)

    seeds = [bytes([number, 100, 60, 130, 70, 20, 65]) for number in range(len(COMMANDS))]
    return Entrance(tuple(seeds), enter)


def _furnish(folder: Path) -> None:
    """A data set of two images, a model for them, one of other code, and an empty folder."""
    for name in "ab":
        (folder / "data" / "test" / name).mkdir(parents=True, exist_ok=True)
        pixels = torch.full(SHAPE[1:], 99, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / "data" / "test" / name / "0.png")
    (folder / "empty").mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = build(parse_architecture("wrn-10-1", in_channels=1)).eval()
    defense = ActiveDefense(model, beta=3.0, max_steps=2, compile=False)
    defense.calibrate(torch.rand(8, *SHAPE))
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
    return event == "os.mkdir"


def _inside(path: str, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
