"""Mutation testing by cosmic-ray: which changes of a line does no test notice?

    python -m tools.mutate [WORD ...]     test the mutants that are left, and the survivors again, of the modules whose
                                          path has one of the words, or of all
    python -m tools.mutate --report       counts and survivors of what was run, as a table for docs/testing.md

Each module is mutated in a copy of the tree under build/mutate. A mutant meets the tests that run the lines in which it
differs, of the directories that mirror it: the module's own first, and no more than take a few seconds. A session is a
database a module: an interrupted run goes on where it was, and one whose module has changed begins anew. Several calls
may run at once, on other modules.
"""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.mutate import forks

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutate"
PARTS = ("fastdef", "kernels", "export", "tests", "benchmarks")
TESTS = {  # of each directory or module, the longest that fits; a test beyond them may kill a mutant too
    "fastdef/attacks": "tests/attacks tests/evaluation/test_vanished.py",
    "fastdef/evaluation": "tests/evaluation",
    "fastdef/losses": "tests/losses tests/training/test_branches.py",
    "fastdef/runtime/scheduler.py": "tests/runtime/test_scheduler.py tests/runtime/test_session.py",
    "fastdef/runtime/session.py": "tests/runtime/test_session_alone.py tests/runtime/test_session.py",
    "fastdef/serving": "tests/serving",
}
# Figures that somebody chose and no test should repeat.
NOT_MUTATED = {"fastdef/evaluation/adaptive/budget.py"}
# What no type could take, or an annotation alone.
LEFT_OUT = r"core/ReplaceBinaryOperator_.*_(LShift|RShift|BitOr|BitAnd|BitXor|Mod|FloorDiv|Pow)"
CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = 900.0
excluded-modules = []
test-command = "{python} -S {ask} {socket}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ['{left_out}', 'core/ReplaceBinaryOperator_BitOr_.*']
"""


def main() -> None:
    """Run, or report."""
    words = sys.argv[1:]
    if words == ["--report"]:
        print(report())
        return
    for module in modules():
        if not words or any(word in module for word in words):
            run(module)


def modules() -> list[str]:
    """Every module of the mutated directories, by its path from the root."""
    found = {path for part in TESTS for path in (sorted((ROOT / part).rglob("*.py")) or [ROOT / part])}
    names = {str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py"}
    return sorted(names - NOT_MUTATED)


def run(module: str) -> None:
    """All mutants of a module that have not been tested yet."""
    folder = BUILD / module.replace("/", "-").removesuffix(".py")
    tree, session, config, original = (folder / name for name in ("tree", "session.sqlite", "config.toml", "module"))
    if not original.is_file() or original.read_text() != (ROOT / module).read_text():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    copy(tree)
    covered = cover(tree, TESTS[max((part for part in TESTS if module.startswith(part)), key=len)])
    shutil.copy(ROOT / module, original)
    with served(tree, covered, module, original) as address:
        ask = ROOT / "tools" / "mutate" / "ask.py"
        text = CONFIG.format(module=module, python=sys.executable, ask=ask, socket=address, left_out=LEFT_OUT)
        config.write_text(text)
        call("-m", "cosmic_ray.cli", "baseline", str(config), cwd=tree)
        if not session.is_file():
            call("-m", "cosmic_ray.cli", "init", str(config), str(session), cwd=tree)
            call("-m", "cosmic_ray.tools.filters.operators_filter", str(session), str(config), cwd=tree)
        forget_survivors(session)
        call("-m", "cosmic_ray.cli", "exec", str(config), str(session), cwd=tree)
    shutil.rmtree(tree)


def cover(tree: Path, tests: str) -> Path:
    """The file that says which of the tests runs which line; made once for one state of code and tests."""
    state = hashlib.sha256(tests.encode())
    for path in sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py")):
        state.update(path.read_bytes())
    file = BUILD / f"covered-{state.hexdigest()[:16]}.json"
    if not file.is_file():
        arguments = [option for option in forks.OPTIONS if option != "-x"] + tests.split()
        code = f"from pathlib import Path; from tools.mutate import cover, forks; tree = Path({str(tree)!r}); "
        code += f"forks.in_fork(tree, {arguments!r}, cover.Cover(tree, Path({str(file)!r})))"
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(ROOT), check=False)
        if ended.returncode:
            raise SystemExit(f"the tests fail unbroken: {tree.parent / 'pytest.log'}")
    return file


@contextmanager
def served(tree: Path, covered: Path, module: str, original: Path) -> Iterator[str]:
    """The socket of a server that runs tests in forks."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        address = str(Path(folder) / "ask")
        command = [sys.executable, "-m", "tools.mutate.forks", str(tree), str(covered), module, str(original), address]
        with subprocess.Popen(command, cwd=ROOT, env=environment(ROOT)) as server:
            try:
                while not Path(address).exists():
                    if server.poll() is not None:
                        raise SystemExit("the server of the forks did not start")
                    time.sleep(0.1)
                yield address
            finally:
                server.kill()


def forget_survivors(session: Path) -> None:
    """Have them tested again: there may be a test for them by now."""
    with sqlite3.connect(session) as database:
        database.execute("delete from work_results where test_outcome = 'SURVIVED'")


def copy(tree: Path) -> None:
    """A tree of what the tests need, so that this one is never broken."""
    shutil.rmtree(tree, ignore_errors=True)
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tree / "pyproject.toml")


def environment(first: Path) -> dict[str, str]:
    """One thread, nothing written beside the sources, no plugins of pytest, and packages from ``first``."""
    path = f"{first}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def call(*command: str, cwd: Path) -> None:
    """A step of cosmic-ray, in the copy."""
    subprocess.run([sys.executable, *command], cwd=cwd, env=environment(cwd), check=True)


def report() -> str:
    """Mutants, killed and surviving, of each module that was run; and the survivors by line."""
    lines = ["| module | mutants | killed | survived | not run |", "| --- | ---: | ---: | ---: | ---: |"]
    survivors = []
    for module in modules():
        session = BUILD / module.replace("/", "-").removesuffix(".py") / "session.sqlite"
        if not session.is_file():
            continue
        rows = outcomes(session)
        counts = [sum(row[0] == kind for row in rows) for kind in ("KILLED", "SURVIVED", None)]
        lines.append(f"| `{module}` | {sum(counts)} | {counts[0]} | {counts[1]} | {counts[2]} |")
        survivors += [f"- `{module}:{line}` {name}" for kind, name, line in rows if kind == "SURVIVED"]
    return "\n".join([*lines, "", *survivors])


def outcomes(session: Path) -> list[tuple[str | None, str, int]]:
    """Of each mutant of a session its outcome, or None where it is not tested yet, its operator and its line."""
    with sqlite3.connect(session) as database:
        return database.execute(
            "select r.test_outcome, m.operator_name, m.start_pos_row from mutation_specs m"
            " left join work_results r on r.job_id = m.job_id"
            " where r.worker_outcome is null or r.worker_outcome != 'SKIPPED' order by m.start_pos_row"
        ).fetchall()


if __name__ == "__main__":
    main()
