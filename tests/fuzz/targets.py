"""Coverage-guided fuzzing of every entrance: ``python -m tests.fuzz.targets [NAME ...] [-runs=10000]``.

Each entrance runs in a process of its own under Atheris (libFuzzer), as many at once as there are cores. One stops at
the first input that crashes, hangs or raises anything but a ValueError of one line, and leaves that input in
``build/fuzz/NAME``, beside what Atheris told.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return int(not all(threads.map(lambda name: _sound(name, options), names or ENTRANCES)))


def _sound(name: str, options: list[str]) -> bool:
    """Fuzz one entrance in a process of its own, and say in one line how it went."""
    log = Path("build/fuzz") / name / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        status = subprocess.run([sys.executable, "-m", __spec__.name, name, *options], stderr=file).returncode
    runs = re.findall(r"^Done (\d+) runs", log.read_text(errors="replace"), re.MULTILINE)
    sound = status == 0 and len(runs) == 1
    told = f"{runs[0]} inputs, sound" if sound else f"status {status}, see {log}"
    sys.stderr.write(f"{name}: {told}\n")
    return sound


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
