"""Coverage-guided fuzzing of every entrance: ``python -m tests.fuzz.targets [NAME ...] [-runs=10000]``.

Each entrance runs in a process of its own under Atheris (libFuzzer), which stops at the first input that crashes, hangs
or raises anything but a ValueError of one line, and leaves that input in ``build/fuzz/NAME``.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

_FOLLOWED = ["fastdef", "tests.fuzz", "PIL", "torch._weights_only_unpickler"]  # Python that takes bytes apart
_LIMITS = ["-len_control=0", "-timeout=60", "-rss_limit_mb=8192", "-print_final_stats=1"]


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one entrance in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=_FOLLOWED):
        import torch

        from tests.fuzz.catalogue import ENTRANCES
        from tests.fuzz.entrances import check

    torch.set_num_threads(1)
    folder = Path("build/fuzz").resolve() / name
    for place in ("files", "corpus"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    entrance = ENTRANCES[name](folder / "files")
    for number, content in enumerate(entrance.sound):
        (folder / "corpus" / f"sound-{number}").write_bytes(content)
    longest = max(64, 2 * max(map(len, entrance.sound)))
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
    from tests.fuzz.catalogue import ENTRANCES  # not before the one above, which follows it

    called = [[sys.executable, "-m", __spec__.name, name, *options] for name in names or ENTRANCES]
    return int(any([subprocess.run(words).returncode for words in called]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
