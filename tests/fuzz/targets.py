"""Coverage-guided fuzzing of every entrance: ``python -m tests.fuzz.targets [NAME ...] [-runs=10000]``.

Each entrance runs in a process of its own under Atheris (libFuzzer), which stops at the first input that crashes, hangs
or raises anything but a ValueError of one line, and leaves that input in ``build/fuzz/NAME``.
"""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import command, entrances
from tests.fuzz.entrances import Entrance, check

ENTRANCES: dict[str, Callable[[Path], Entrance]] = {
    made.__name__: made
    for made in (
        entrances.image_batches,
        entrances.images,
        entrances.idx_images,
        entrances.idx_labels,
        entrances.parquet,
        entrances.models,
        entrances.model_headers,
        entrances.model_configurations,
        entrances.foreign,
        entrances.manifests,
        entrances.onnx_classifier,
        entrances.onnx_step,
        entrances.onnx_defended,
        entrances.onnx_descriptions,
        command.command_lines,
    )
}
_LIMITS = ["-timeout=60", "-rss_limit_mb=8192", "-print_final_stats=1"]


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one entrance in this process, which ends with it."""
    import atheris
    import torch

    torch.set_num_threads(1)
    folder = Path("build/fuzz").resolve() / name
    for place in ("files", "corpus"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    entrance = ENTRANCES[name](folder / "files")
    for number, content in enumerate(entrance.sound):
        (folder / "corpus" / f"sound-{number}").write_bytes(content)
    longest = 2 * max(map(len, entrance.sound))
    given = [f"-artifact_prefix={folder}/", f"-max_len={longest}", *_LIMITS, *options, str(folder / "corpus")]
    atheris.Setup([name, *given], lambda content: check(entrance, content) and None)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz the entrances of these names, or all; returns 1 where one of them was found wanting."""
    if find_spec("atheris") is None:
        sys.stderr.write("fuzzing by coverage needs atheris: pip install 'fastdef[fuzz]'\n")
        return 0
    options = [argument for argument in arguments if argument.startswith("-")]
    names = [argument for argument in arguments if not argument.startswith("-")]
    if len(names) == 1:
        fuzz(names[0], options)
    called = [[sys.executable, "-m", __spec__.name, name, *options] for name in names or ENTRANCES]
    return int(any([subprocess.run(words).returncode for words in called]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
